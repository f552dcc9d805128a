"""From measurements to a schedule: a plan for a number of calls, and the weights matched to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import diffusers
import torch

from .. import __version__
from ..distributed import ALONE, Ranks
from ..engines.diffusers.identity import fingerprint, provenance
from ..fitting.plan import best_plan, even_plan
from ..policies.plan import Plan
from ..profile import Profile
from ..profiling.cache import described
from ..profiling.measure import Measurement, Progress, in_turn, silent
from ..runs import Call, Prompt
from ..schedule.format import Grid, Kernel
from ..schedule.rule import Rule
from ..schedule.schedule import Schedule
from .match import Fit, match

__all__ = ["assembled", "fitted", "plans_for"]

TRUST = (0.0, 0.25, 0.5, 0.75, 1.0)  # exponents of the measured influence


def fitted(
    pipe: Any,
    call: Call,
    prompts: Sequence[Prompt],
    measurement: Measurement,
    calls: int,
    *,
    fit: Fit = Fit(),  # noqa: B008 - frozen
    batch_size: int = 1,
    ranks: Ranks = ALONE,
    progress: Progress = silent,
) -> Schedule:
    """Plans `calls` computed steps and matches the weights of the others.

    Several plans are matched, and the one is taken whose runs end closest to the reference.
    """
    profile = measurement.profile
    times = tuple(map(float, profile.times))
    plans, matchings = sorted(plans_for(profile, calls)), []
    for number, plan in enumerate(plans):
        watch = in_turn(progress, f"matching {calls} calls", number, len(plans), len(times))
        matchings.append(
            match(
                pipe, call, prompts, plan, profile, measurement.runs,
                fit=fit, batch_size=batch_size, ranks=ranks, progress=watch,
            )
        )  # fmt: skip
        watch(len(times))  # the last steps may have been computed ones
    best = min(range(len(plans)), key=lambda number: matchings[number].error)
    policy = Plan.of(plans[best], times).with_signals(matchings[best].seen)
    rule = Rule(policy=policy, forecast=matchings[best].forecast)
    about = {"prompts": len(prompts), "history": fit.history, "ridge": fit.ridge}
    return assembled(pipe, call, profile, (rule,), about)


def plans_for(profile: Profile, calls: int) -> dict[tuple[int, ...], str]:
    """Returns the plans that are worth matching, each with where it comes from.

    The influence of a step was measured without matching, which undoes much of an early error. So it is
    trusted in several degrees. With few calls in a rough run errors do not add up as planning assumes, and
    nothing beats even steps: these are always among them.
    """
    errors, plans = profile.errors, dict[tuple[int, ...], str]()
    for trust in TRUST:
        plan = best_plan(errors, profile.sensitivity**trust, calls)
        plans.setdefault(tuple(plan), f"planner, trust {trust:g}")
    plans.setdefault(tuple(even_plan(profile.steps, calls)), "even steps")
    return plans


def assembled(
    pipe: Any,
    call: Call,
    profile: Profile,
    rules: tuple[Rule, ...],
    about: Mapping[str, Any] | None = None,
    name: str = "",
) -> Schedule:
    """Returns fitted rules as a schedule: with the kernel, and with what they were fitted on.

    Arguments:
        about: What its provenance says besides.
        name: What it is called. A plan has a name by itself.
    """
    times, policy = tuple(map(float, profile.times)), rules[0].policy
    if not name:
        assert isinstance(policy, Plan)
        speed = len(times) / len(policy.steps(times))
        name = f"{type(pipe).__name__}-{len(times)}-{speed:.3g}x"
    kernel = Kernel(
        times=times,
        gram=tuple(map(tuple, profile.kernel.tolist())),
        sensitivity=tuple(profile.sensitivity.tolist()),
    )
    made = {
        "adaptcache": __version__, "diffusers": diffusers.__version__, "torch": torch.__version__,
        **provenance(pipe), "steps": call.steps, "seed": call.seed,
        "call": {k: described(v) for k, v in call.arguments.items()}, **(about or {}),
    }  # fmt: skip
    return Schedule(
        name=name,
        denoiser=fingerprint(pipe),
        grid=Grid(scheduler=type(pipe.scheduler).__name__, times=times),
        rules=rules,
        kernel=kernel,
        made=made,
    )
