"""Methods of our own zoo as peers: what was published, through the code that would run it here."""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ...engines.diffusers.watch import denoisers_of
from ...errors import AttachError
from ...fitting.kernel import pair_errors
from ...fitting.plan import best_plan
from ...forecasts.matched import Matched
from ...policies.plan import Plan
from ...policies.uniform import Uniform
from ...runtime.runner import Runner
from ...schedule.format import Grid
from ...schedule.methods import build_rules
from ...schedule.rule import Rule
from ...schedule.schedule import Schedule
from ...sites.denoisers import find_spec
from .base import Case, Knobs, Peer, Ready

__all__ = ["DiCache", "EasyCache", "HiCache", "Learned", "Zoo", "even", "follower", "rule_of"]

NEAR = 2  # plans tried for each budget


def rule_of(name: str, **knobs: Any) -> Rule:
    """Returns the rule of a published method that has one."""
    (rule,) = build_rules(name, **knobs)
    return rule


class Zoo(Peer):
    """A rule of ours: a site, a policy and a forecast."""

    needs = "adaptcache"
    inside = False  # whether the site lies in the denoiser's blocks

    def missing(self, case: Case) -> str | None:
        if self.inside:
            try:
                find_spec(denoisers_of(case.pipe)[0])
            except AttachError as error:
                return str(error).partition(",")[0]
        return None

    @abstractmethod
    def rule(self, case: Case, knobs: Knobs) -> Rule:
        """Returns the rule with these knobs."""

    @contextmanager
    def applied(self, case: Case, knobs: Knobs) -> Iterator[Ready]:
        yield Ready(case.call, follower(self.rule(case, knobs)))


def follower(rule: Rule, times: tuple[float, ...] = ()) -> Runner:
    """Returns the visitor that follows a rule, on the grid it was fitted on if it was."""
    return Runner(Schedule(name="peer", grid=Grid(times=times), rules=(rule,)), False, 0)


class EasyCache(Zoo):
    """Zhou et al., 2025, https://arxiv.org/abs/2507.02860"""

    name = "EasyCache"
    about = "our zoo; decides for each prompt"
    alone = True
    fine = "threshold"

    def settings(self, case: Case) -> list[Knobs]:
        both = itertools.product((0.02, 0.06, 0.2, 0.6, 2.0), (2, 5))
        return [{"threshold": threshold, "warm_up": warm_up} for threshold, warm_up in both]

    def rule(self, case: Case, knobs: Knobs) -> Rule:
        return rule_of("easycache", **knobs)


class DiCache(Zoo):
    """Bu et al., 2025, https://arxiv.org/abs/2508.17356"""

    name = "DiCache"
    about = "our zoo, one block as a probe; decides for each prompt"
    inside = True
    alone = True
    fine = "threshold"

    def settings(self, case: Case) -> list[Knobs]:
        both = itertools.product((0.05, 0.15, 0.4, 1.2, 4.0), (1, 3))
        return [{"threshold": threshold, "warm_up": warm_up} for threshold, warm_up in both]

    def rule(self, case: Case, knobs: Knobs) -> Rule:
        return rule_of("dicache", **knobs)


class HiCache(Zoo):
    """Feng et al., 2025, https://arxiv.org/abs/2508.16984"""

    name = "HiCache"
    about = "our zoo, the output of the denoiser"

    def settings(self, case: Case) -> list[Knobs]:
        plans: dict[tuple[int, ...], tuple[int, int]] = {}
        for interval, warm_up in itertools.product(range(2, 11), range(1, 6)):
            plan = followed(Uniform(interval=interval, warm_up=warm_up), case.call.steps)
            plans.setdefault(plan, (interval, warm_up))
        chosen: dict[tuple[int, int], None] = {}
        for calls in case.calls:
            below = sorted((plan for plan in plans if len(plan) <= calls), key=len, reverse=True)
            chosen |= dict.fromkeys(plans[plan] for plan in below[:NEAR])
        return [
            {"interval": interval, "warm_up": warm_up, "order": order, "scale": scale}
            for (interval, warm_up), order, scale in itertools.product(chosen, (1, 2), (0.5, 0.7))
        ]

    def rule(self, case: Case, knobs: Knobs) -> Rule:
        return rule_of("hicache", **knobs)


class Learned(Zoo):
    """Linear weights fitted to full runs, 2026, https://arxiv.org/abs/2604.26365"""

    name = "L2P"
    about = "our zoo, fitted to the profile"
    profiled = True

    def settings(self, case: Case) -> list[Knobs]:
        errors, steps = pair_errors(case.profile.kernel), case.call.steps
        found = list[Knobs]()
        for calls in case.calls:
            plans = {"even": even(steps, calls), "best": best_plan(errors, case.profile.sensitivity, calls)}
            for (planner, plan), history in itertools.product(plans.items(), (2, 3, 4)):
                found.append({"planner": planner, "plan": plan, "history": history})
        return found

    @contextmanager
    def applied(self, case: Case, knobs: Knobs) -> Iterator[Ready]:
        yield Ready(case.call, follower(self.rule(case, knobs), tuple(map(float, case.profile.times))))

    def rule(self, case: Case, knobs: Knobs) -> Rule:
        times = tuple(map(float, case.profile.times))
        forecast = Matched.fit(case.profile, knobs["plan"], knobs["history"])
        return Rule(policy=Plan.of(knobs["plan"], times), forecast=forecast)


def even(steps: int, calls: int) -> list[int]:
    """Returns so many steps, evenly spaced, with the first and the last."""
    return sorted({round(k * (steps - 1) / max(1, calls - 1)) for k in range(calls)})


def followed(policy: Uniform, steps: int) -> tuple[int, ...]:
    """Returns the numbers of the steps a policy computes that looks at nothing."""
    return tuple(policy.steps(tuple(1 - i / steps for i in range(steps))))
