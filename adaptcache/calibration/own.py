"""Schedules with noise levels of their own: a run is as many steps as calls, and their times lie anywhere.

The steps between two calls are one linear map of latents and outputs, so a planned run is a run of fewer steps whose
sampler gets weighted outputs; and then nothing holds its times to the grid. Where the full run is at a time of no step
of it is known: Euler's sampler goes straight from step to step. So the same trajectory matching serves, and the times
are searched by the error it ends with, from those of the plan that was found on the grid.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from ..errors import ScheduleError
from ..profiling.measure import Measurement
from ..profiling.reference import Trajectory
from ..profiling.statistics import build_profile, statistics_of
from ..schedule.format import EULER
from ..schedule.schedule import Schedule
from .fit import about_fit, build_schedule
from .match import Fit, Matching, match
from .refine import refine
from .search import EFFORT, SearchCost, choose_judges, judges_for, plans_for, search_plan

SHARES = 0.3, 0.25  # of the effort: for the plan to begin with, and for that and the times, if there is plenty
SIZE, LEAST = 0.3, 0.02  # of a move, as a share of the gap that it goes into: at first, and at least
WIDER = 1.5  # times that after a gain

Times = tuple[float, ...]


def through(run: Trajectory, times: Times) -> Trajectory:
    """Returns a full run of Euler's sampler as one that stops at other times, which fall from its first one."""
    ends, u, x, y = (*run.times, 0.0), list[list[Tensor]](), list[list[Tensor]](), list[list[Tensor]]()

    def at(time: float, befores: Sequence[Tensor], last: Tensor) -> Tensor:
        """Returns the latents at a time."""
        step = min(max(sum(end >= time for end in ends) - 1, 0), len(run.times) - 1)
        share = (ends[step] - time) / (ends[step] - ends[step + 1])
        after = befores[step + 1] if step + 1 < len(befores) else last
        return befores[step] + (after - befores[step]) * share

    for befores, landed in zip(run.x, run.y, strict=True):
        stops = [at(time, befores, landed[-1]) for time in times] + [landed[-1]]
        x.append(stops[:-1])
        y.append(stops[1:])
        gaps = [b - a for a, b in zip(times, (*times[1:], 0.0), strict=True)]
        u.append([(b - a) / gap for a, b, gap in zip(stops, stops[1:], gaps, strict=False)])
    return Trajectory(times, u, x, y, guided=run.guided, full=run.times)


def measured_at(measurement: Measurement, times: Times) -> Measurement:
    """Returns what full runs show at other times."""
    runs = [through(run, times) for run in measurement.runs]
    jobs = zip(runs, measurement.setup.batches(measurement.prompts), strict=True)
    rows = [row for run, batch in jobs for row in statistics_of(run, batch)]
    about = dict(measurement.profile.about)
    branches = set(about.pop("branches", ()))
    about |= {"branches": [*branches] * len(times)} if len(branches) == 1 else {}
    return replace(measurement, profile=build_profile(times, rows, about), runs=runs, own=True, request=None)


def fit_own_times(measurement: Measurement, calls: int, fit: Fit, effort: float = EFFORT) -> Schedule:
    """Searches `calls` times and matches the weights of all of them, for an effort in full runs of one prompt.

    Raises:
        ScheduleError: The sampler is none of those that go straight from step to step.
    """
    setup, prompts = measurement.setup, measurement.prompts
    scheduler = setup.engine.describe(setup.call)[1]
    alike = all(run.alike and run.lead == 0 and not run.left for run in measurement.runs)
    if scheduler != EULER or measurement.profile.noisy or not alike:
        raise ScheduleError(
            f"own times need full runs of a {EULER} that adds no noise, this is a {scheduler}: calibrate on the grid"
        )
    full, steps = tuple(map(float, measurement.profile.times)), measurement.profile.steps
    announced = SearchCost.of(min(EFFORT / 2, SHARES[0] * effort), steps, calls, len(prompts), finals=2)
    plan = search_plan(measurement, calls, fit, announced)
    total, effort = effort, max(min(effort, EFFORT), SHARES[1] * effort)
    count = judges_for(effort, calls / steps, len(prompts))
    one = choose_judges(measurement.profile, plans_for(measurement.profile, calls), count, setup.batch_size)
    jury = measurement.head(count, first=one)
    spent = plan.cost
    report = setup.stage(f"searching {calls} times", max(round(effort - spent), 1))

    def judge(times: Times, who: Measurement, begun: Matching | None = None) -> Matching:
        found = match(measured_at(who, times), range(calls), fit, begun=begun)
        # Costs are counted in runs of as many steps as calls.
        return replace(found, cost=found.cost * calls / steps)

    start, first = (tuple(full[step] for step in steps) for steps in (plan.plan, plan.start))
    best = judge(start, jury)
    spent += best.cost
    tried, sizes = 1, dict.fromkeys(((m, way) for m in range(1, calls) for way in (-1, 1)), SIZE)
    queue = sorted(sizes, key=lambda key: -key[0])  # late ones cost least
    while queue and max(sizes.values()) > LEAST:
        m, way = key = queue.pop(0)
        price = count * (calls - m + 1) / steps
        if spent + price > effort:
            if spent + 2 * count / steps > effort:
                break
            continue
        around = (best.times[m - 1], *best.times[m:], 0.0)
        gap = around[0] - around[1] if way > 0 else around[1] - around[2]
        times = (*best.times[:m], best.times[m] + way * sizes[key] * gap, *best.times[m + 1 :])
        found = judge(times, jury, best)
        spent, tried = spent + found.cost, tried + 1
        report(round(spent - plan.cost))
        gains = found.error < best.error
        best = found if gains else best
        sizes[key] *= WIDER if gains else 0.5
        sizes[key] = min(sizes[key], 0.8)
        queue.insert(0, key) if gains else queue.append(key)
    report(max(round(effort - plan.cost), 1))
    ends = [judge(times, measurement) for times in dict.fromkeys((best.times, start, first))]
    spent += sum(end.cost for end in ends)
    unseen = [k for k in range(len(prompts)) if k not in range(one, one + count)] or range(count)
    final = min(ends, key=lambda end: float(end.ends[unseen].mean()))
    here = measured_at(measurement, final.times)
    final = refine(here, replace(final, cost=0.0), fit, (total - spent) * steps / calls)
    spent += final.cost * calls / steps
    gain = 10 * math.log10(ends[-1].error / final.error)
    search = {"plans": plan.tried + tried, "full_runs": round(spent, 1), "gain_db": round(gain, 2)}
    profile = measured_at(measurement.head(1), final.times).profile
    about = about_fit(measurement, fit, search)
    return build_schedule(setup, profile, (final.rule,), about, full=measurement.profile)
