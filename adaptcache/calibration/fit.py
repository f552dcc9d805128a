"""From measurements to a schedule: a plan for a number of calls, and the weights matched to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..fitting.plan import best_plan, even_plan
from ..policies.plan import Plan
from ..profile import Profile
from ..profiling.measure import Measurement
from ..runs import PromptSet, Setup
from ..schedule.format import Denoiser, Grid, Kernel
from ..schedule.rule import Rule
from ..schedule.schedule import Schedule
from .match import Fit, match

TRUST = (0.0, 0.25, 0.5, 0.75, 1.0)  # exponents of the measured sensitivity


def fit_schedule(
    setup: Setup,
    prompts: PromptSet,
    measurement: Measurement,
    calls: int,
    fit: Fit = Fit(),  # noqa: B008 - frozen
) -> Schedule:
    """Plans `calls` computed steps and matches the weights of the others.

    Several plans are matched, and the one is taken whose runs end closest to the reference.
    """
    profile = measurement.profile
    times = tuple(map(float, profile.times))
    plans, matchings = sorted(plans_for(profile, calls)), []
    for number, plan in enumerate(plans):
        report = setup.stage(f"matching {calls} calls", len(plans) * len(times), number * len(times))
        matchings.append(match(setup, prompts, plan, measurement, fit, report))
        report(len(times))  # the last steps may have been computed ones
    best = min(range(len(plans)), key=lambda number: matchings[number].error)
    policy = Plan.of(plans[best], times).with_signals(matchings[best].seen)
    rule = Rule(policy=policy, forecast=matchings[best].forecast)
    about = {"prompts": len(prompts), "history": fit.history, "ridge": fit.ridge}
    return build_schedule(setup, profile, (rule,), about)


def plans_for(profile: Profile, calls: int) -> dict[tuple[int, ...], str]:
    """Returns the plans that are worth matching, each with where it comes from.

    The sensitivity of a step was measured without matching, which undoes much of an early error. So it is
    trusted in several degrees. With few calls in a rough run errors do not add up as planning assumes, and
    nothing beats even steps: these are always among them.
    """
    errors, plans = profile.errors, dict[tuple[int, ...], str]()
    for trust in TRUST:
        plan = best_plan(errors, profile.sensitivity**trust, calls)
        plans.setdefault(tuple(plan), f"planner, trust {trust:g}")
    plans.setdefault(tuple(even_plan(profile.steps, calls)), "even steps")
    return plans


def build_schedule(
    setup: Setup,
    profile: Profile,
    rules: tuple[Rule, ...],
    about: Mapping[str, Any] | None = None,
    name: str = "",
) -> Schedule:
    """Returns fitted rules as a schedule: with the kernel, and with what they were fitted on.

    Arguments:
        setup: Who ran, and how.
        profile: What was measured.
        rules: What was fitted.
        about: What the provenance says besides.
        name: What it is called. A plan has a name by itself.
    """
    times, policy = tuple(map(float, profile.times)), rules[0].policy
    denoiser, scheduler, kind, made = setup.engine.describe(setup.call)
    if not name:
        assert isinstance(policy, Plan)
        name = f"{kind}-{len(times)}-{len(times) / len(policy.steps(times)):.3g}x"
    kernel = Kernel(
        times=times,
        gram=tuple(map(tuple, profile.kernel.tolist())),
        sensitivity=tuple(profile.sensitivity.tolist()),
    )
    return Schedule(
        name=name,
        denoiser=Denoiser(**denoiser),
        grid=Grid(scheduler=scheduler, times=times),
        rules=rules,
        kernel=kernel,
        made={**made, **profile.about, **(about or {})},
    )
