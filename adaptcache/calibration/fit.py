"""From measurements to a schedule: a plan for a number of calls, and the weights matched to it."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..hooks import StepHook
from ..limits import LOOPS
from ..policies.plan import Plan
from ..profile import Profile
from ..profiling.measure import Measurement, measure
from ..runs import PromptSet, Setup
from ..schedule.format import Denoiser, Grid, Kernel, same_grid
from ..schedule.rule import Rule
from ..schedule.schedule import LoopPlan, Schedule
from .match import Fit, Matching, match
from .refine import refine
from .search import EFFORT, Search, SearchCost, search_plan, searched


def choose_plan(
    measurement: Measurement, calls: int, fit: Fit, effort: float
) -> tuple[Matching, list[Matching], Search]:
    """Searches a plan of `calls` computed steps, and compares on all prompts what came of it.

    The plan that the search began with and the one that it found, or the second best, are matched on all prompts. On
    those that did not judge, another has to be better by more than the standard error of that. Each is matched from
    its first step: what was announced is what is run. The arguments are those of `fit_schedule`.

    Returns:
        The best of them; all of them, beginning with that of the planner's proposals; and the search.
    """
    steps, count = measurement.profile.steps, len(measurement.prompts)
    announced = SearchCost.of(searched(effort), steps, calls, count)
    found = search_plan(measurement, calls, fit, announced)
    plans = list(dict.fromkeys((found.start, *found.whole, found.plan, *found.judged)))[: announced.finals]
    matchings = list[Matching]()
    for number, plan in enumerate(plans):
        report = measurement.setup.stage(f"matching {calls} calls", len(plans) * steps, number * steps)
        matchings.append(found.whole.get(plan) or match(measurement, plan, fit, report))
        report(steps)  # the last steps may have no weights
    unseen = [number for number in range(count) if number not in found.judges] or found.judges
    best, *others = matchings
    for other in sorted(others, key=lambda other: other.ends[unseen].mean())[:1]:
        gains = best.ends[unseen] - other.ends[unseen]
        if gains.mean() > (gains.std(ddof=1) / len(gains) ** 0.5 if len(gains) > 1 else 0.0):
            best = other
    return best, matchings, found


def fit_schedule(measurement: Measurement, calls: int, fit: Fit = Fit(), effort: float = EFFORT) -> Schedule:
    """Plans `calls` computed steps and matches their weights, for an effort in full runs of one prompt."""
    best, compared, found = choose_plan(measurement, calls, fit, effort)
    cost = found.cost + sum(matching.cost for matching in compared)
    if measurement.setup.ranks.size == 1:
        best = refine(measurement, replace(best, cost=0.0), fit, effort - searched(effort))
        cost += best.cost
    gain = 10 * math.log10(compared[0].error / best.error)
    search = {"plans": max(found.tried, 1), "full_runs": round(cost, 1), "gain_db": round(gain, 2)}
    return build_schedule(measurement.setup, measurement.profile, (best.rule,), about_fit(measurement, fit, search))


def about_fit(measurement: Measurement, fit: Fit, search: Mapping[str, float] | None = None) -> dict[str, Any]:
    """Returns what the provenance says of a fit, and of the search of its plan."""
    about = {"prompts": len(measurement.prompts), "history": fit.history, "ridge": fit.ridge}
    return about | ({"search": search} if search else {})


class LoopGrids(StepHook):
    """Notes the grids of all loops of a call."""

    def __init__(self) -> None:
        self.grids: list[tuple[float, ...]] = []

    def on_run_start(self, times: tuple[float, ...]) -> None:
        self.grids.append(times)


def fit_loops(setup: Setup, prompts: PromptSet, schedule: Schedule, fit: Fit, effort: float = EFFORT) -> Schedule:
    """Gives each loop of a call a plan of its own, with the budget of the one that a schedule was fitted to.

    The chunks of an autoregressive clip are such loops: the first has nothing to go on from, later ones have. A loop
    is measured and matched after full runs of those before it, so that it begins with what the full call has.
    """
    share = schedule.rules[0].policy.gears[0].budget if isinstance(schedule.rules[0].policy, Plan) else 1.0
    setup.run(counter := LoopGrids(), prompts[:1])
    plans: list[LoopPlan] = []
    for number, times in enumerate(counter.grids[:LOOPS]):
        one = schedule
        if number or not same_grid(times, schedule.grid.times):
            measurement = measure(replace(setup, loop=number), prompts)
            calls = max(1, round(share * measurement.profile.steps))
            one = fit_schedule(measurement, calls, fit, effort)
        plans.append(LoopPlan(grid=one.grid, rules=one.rules))
    return schedule.model_copy(update={"loops": tuple(plans)})


def build_schedule(
    setup: Setup,
    profile: Profile,
    rules: tuple[Rule, ...],
    about: Mapping[str, Any] | None = None,
    name: str = "",
    full: Profile | None = None,
) -> Schedule:
    """Returns fitted rules as a schedule: with the kernel, and with what they were fitted on.

    Arguments:
        about: What the provenance says besides.
        name: What it is called. A plan has a name by itself.
        full: What was measured of the full run, where the times of `profile` are a schedule's own.
    """
    times, policy = tuple(map(float, profile.times)), rules[0].policy
    denoiser, scheduler, kind, made = setup.engine.describe(setup.call)
    if not name:
        assert isinstance(policy, Plan)
        steps = len((full or profile).times)
        name = f"{kind}-{steps}-{steps / len(policy.steps(times)):.3g}x{'-own' if full else ''}"
    grid = Grid(scheduler=scheduler, times=times, full=tuple(map(float, full.times)) if full else None)
    kernel = None if full else Kernel(
        times=times,
        gram=tuple(map(tuple, profile.kernel.tolist())),
        sensitivity=tuple(profile.sensitivity.tolist()),
    )  # fmt: skip
    call = {**made.get("call", {}), **profile.about.get("call", {})}
    return Schedule(
        name=name,
        denoiser=Denoiser(**denoiser),
        grid=grid,
        rules=rules,
        kernel=kernel,
        made={**made, **profile.about, **(about or {}), "call": call},
    )
