"""Published methods through the code that runs them here: a site, a policy and a forecast."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from ...calibration.methods import fit_method
from ...errors import AttachError
from ...fitting.kernel import pair_errors
from ...fitting.plan import best_plan
from ...forecasts.matched import Matched
from ...policies import POLICIES
from ...policies.plan import Plan
from ...policies.uniform import Uniform
from ...runtime.runner import Runner
from ...schedule.format import Grid
from ...schedule.methods import METHODS, build_rules
from ...schedule.rule import Rule
from ...schedule.schedule import Schedule
from ...sites.denoisers import find_spec
from .base import Baseline, Case, Params, Ready, even_steps, nearest_plans, planned_steps, product_of
from .diffusers_caches import SEA_THRESHOLDS

NEAR = 2  # plans tried for each budget
SHARES = 1.0, 0.85, 0.7  # of a budget, that named methods are fitted to


class RuleBaseline(Baseline):
    """A method that runs here as a rule."""

    package = "adaptcache"
    method: ClassVar[str] = ""  # its name in `adaptcache methods`
    inside: ClassVar[bool] = False  # whether the site lies in the denoiser's blocks

    def find_obstacle(self, case: Case) -> str | None:
        if self.inside:
            try:
                find_spec(case.denoisers[0])
            except AttachError as error:
                return str(error).partition(",")[0]
        return None

    def build_rule(self, case: Case, params: Params) -> Rule:
        """Returns the rule with these parameters."""
        return build_rules(self.method, **params)[0]

    @contextmanager
    def apply(self, case: Case, params: Params) -> Iterator[Ready]:
        times = tuple(map(float, case.profile.times)) if self.profiled else ()
        yield Ready(case.setup.call, build_runner(self.build_rule(case, params), times))


def build_runner(rule: Rule, times: tuple[float, ...] = ()) -> Runner:
    """Returns the hook that follows a rule, on the grid it was fitted on if it was."""
    return Runner(Schedule(name="baseline", grid=Grid(times=times), rules=(rule,)), gear=0)


class NamedMethod(Baseline):
    """A method of `adaptcache methods` by its name there, fitted to the budget on the calibration prompts."""

    package = "adaptcache"
    about = "our zoo, fitted to the budget"
    profiled = True

    def __init__(self, name: str) -> None:
        self.name = name  # type: ignore[misc]
        self.per_prompt = not POLICIES[METHODS[name].policy].static  # type: ignore[misc]
        self.fitted: dict[float, Schedule] = {}

    def propose(self, case: Case) -> list[Params]:
        """Returns the budgets, and some below them, as a run may spend more than its calibration."""
        budgets = [calls / case.steps * share for calls in case.calls for share in SHARES]
        for budget in budgets:
            self.fitted[budget] = fit_method(case.setup, case.prompts, case.profile, self.name, budget)
        return [{"budget": budget} for budget in budgets]

    @contextmanager
    def apply(self, case: Case, params: Params) -> Iterator[Ready]:
        yield Ready(case.setup.call, Runner(self.fitted[params["budget"]], gear=0))


class EasyCache(RuleBaseline):
    """Zhou et al., 2025, https://arxiv.org/abs/2507.02860"""

    name = "EasyCache"
    method = "easycache"
    about = "our zoo; decides for each prompt"
    per_prompt = True
    threshold = "threshold"
    settings: ClassVar = {"threshold": (0.02, 0.06, 0.2, 0.6, 2.0), "warm_up": (2, 5)}


class DiCache(RuleBaseline):
    """Bu et al., 2025, https://arxiv.org/abs/2508.17356"""

    name = "DiCache"
    method = "dicache"
    about = "our zoo, one block as a probe; decides for each prompt"
    inside = per_prompt = probes = True
    threshold = "threshold"
    settings: ClassVar = {"threshold": (0.05, 0.15, 0.4, 1.2, 4.0), "warm_up": (1, 3)}


class SeaHere(RuleBaseline):
    """The same decision on the latents, in front of the denoiser."""

    name = "SeaCache (zoo)"
    method = "seacache"
    about = "our zoo, on the latents; decides for each prompt"
    per_prompt = True
    threshold = "threshold"

    def propose(self, case: Case) -> list[Params]:
        place = find_token_grid(case)
        return [{**params, **place} for params in product_of(threshold=SEA_THRESHOLDS, order=(0, 1))]


def find_token_grid(case: Case) -> dict[str, Any]:
    """Returns the positions of the tokens, for pipelines whose latents are a sequence of square patches."""
    size = [case.setup.call.pipe_kwargs.get(name) for name in ("height", "width")]
    if not hasattr(case.pipe, "_pack_latents") or None in size:
        return {}
    patch = 2 * int(getattr(case.pipe, "vae_scale_factor", 8))
    return {"grid": tuple(int(side) // patch for side in size if side)}


class HiCache(RuleBaseline):
    """Feng et al., 2025, https://arxiv.org/abs/2508.16984"""

    name = "HiCache"
    method = "hicache"
    about = "our zoo, the output of the denoiser"

    def propose(self, case: Case) -> list[Params]:
        plans: dict[tuple[int, ...], Params] = {}
        for interval, warm_up in itertools.product(range(2, 11), range(1, 6)):
            plan = planned_steps(Uniform(interval=interval, warm_up=warm_up), case.steps)
            plans.setdefault(plan, {"interval": interval, "warm_up": warm_up})
        forecasts = product_of(order=(1, 2), scale=(0.5, 0.7))
        return [{**plan, **forecast} for plan in nearest_plans(plans, case.calls, NEAR) for forecast in forecasts]


class Learned(RuleBaseline):
    """Linear weights fitted to full runs, 2026, https://arxiv.org/abs/2604.26365"""

    name = "L2P"
    about = "our zoo, fitted to the profile"
    profiled = True

    def propose(self, case: Case) -> list[Params]:
        errors, found = pair_errors(case.profile.kernel), list[Params]()
        for calls in case.calls:
            best = best_plan(errors, case.profile.sensitivity, calls)
            plans = {"even": even_steps(case.steps, calls), "best": best}
            for (planner, plan), history in itertools.product(plans.items(), (2, 3, 4)):
                found.append({"planner": planner, "plan": plan, "history": history})
        return found

    def build_rule(self, case: Case, params: Params) -> Rule:
        times = tuple(map(float, case.profile.times))
        forecast = Matched.fit(case.profile, params["plan"], params["history"])
        return Rule(policy=Plan.of(params["plan"], times), forecast=forecast)
