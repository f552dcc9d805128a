"""Joint refinement: all weights of a plan at once, so that runs end nearer to the reference.

Matching chooses the weights of a step by where that step lands, and knows nothing of what comes after. Levenberg and
Marquardt's method goes on from there, on the final latents. Derivatives are differences of runs, in which everything
before the changed weight is replayed. The steps between two calls are one linear map of the same features, so only the
weights of the last step of each such stretch are changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from ..fitting.kernel import Array, solve_ridge
from ..profiling.measure import Measurement
from ..profiling.statistics import part
from ..runs import PromptSet, Setup
from .match import EXACT, Fit, Matching, MatchingHook

SAMPLE = 4  # prompts that derivatives are measured on at least; all others tell whether a step is taken
ITERATIONS = 2  # that more prompts have to leave room for
CHANGE = 0.01  # of a weight, for its derivative, and of a gap between two times
DAMPING = (1e-3, 3e-2)  # that are tried, relative to each derivative's energy
REFINING = "refining the weights"
GAIN = 0.02  # decibels on the other prompts that an iteration has to bring

Rows = tuple[tuple[tuple[float, ...], ...], ...]


@dataclass(frozen=True)
class Point:
    """Weights by track and step, and the times they are for."""

    rows: Rows
    times: tuple[float, ...]

    def moved(self, columns: Sequence[tuple[int, int, int]], change: Array) -> Point:
        """Returns this point with some of its numbers changed; times stay in order."""
        rows, times = [[list(row) for row in track] for track in self.rows], [*self.times, 0.0]
        for (track, index, number), value in zip(columns, change, strict=True):
            if track >= 0:
                rows[track][index][number] += float(value)
            else:
                least, most = times[index] - times[index + 1], times[index - 1] - times[index]
                times[index] += float(np.clip(value, -0.4 * least, 0.4 * most))
        return Point(tuple(tuple(map(tuple, track)) for track in rows), tuple(times[:-1]))


Column = tuple[int, int, int]  # track, step and number of a weight; of a time: -1, its step and 0


@dataclass
class Refiner:
    """Runs a plan by given weights."""

    setup: Setup  # who runs, in one process
    prompts: PromptSet  # the prompts of the measurement
    measurement: Measurement
    matching: Matching  # what is refined
    fit: Fit  # what its forecasts use
    cost: float = field(default=0.0, init=False)  # in runs of one prompt, of as many steps as the measurement has

    def run(self, point: Point, count: int, begun: Sequence[MatchingHook] = (), start: int = 0) -> list[MatchingHook]:
        """Runs the first prompts, and returns what followed each batch.

        Arguments:
            point: By which weights.
            count: How many prompts.
            begun: What followed other runs of these, that are the same before the sampler's step `start`.
            start: The first step at which the sampler gets something else.
        """
        here, plan = self.measurement.head(count, self.setup.batch_size), self.matching.plan
        hooks = list[MatchingHook]()
        fitted = [index for index, row in enumerate(point.rows[0]) if row]
        for number, batch in enumerate(self.setup.batches(self.prompts[:count])):
            hook = MatchingHook(plan, fitted, self.fit, here.runs[number], batch, lambda given: np.zeros(0))
            hook.rows, hook.signals = point.rows, [row for row, _ in self.matching.seen]
            hook.own_times = point.times if self.measurement.own else ()
            if begun:
                same_time = point.times[: start + 1] == self.at.times[: start + 1]
                hook.begun, hook.start, hook.weighed = begun[number].path, start + same_time, start
            made = self.setup.run(hook, batch)
            self.cost += made.computed * len(batch) / len(point.times)
            hooks.append(hook)
        return hooks

    def solve(self, point: Point, columns: Sequence[Column], count: int) -> list[Array]:
        """Returns the changes of some numbers that should bring the first prompts nearest, by damping."""
        self.at, base = point, self.run(point, count)
        ends, slopes = ends_of(base), list[list[Tensor]]()
        for column in columns:
            track, step, _ = column
            size = CHANGE if track >= 0 else CHANGE * (point.times[step - 1] - point.times[step])
            made = ends_of(self.run(point.moved([column], np.array([size])), count, base, step))
            slopes.append([(other - end) / size for other, end in zip(made, ends, strict=True)])
        gram, moment = np.zeros((len(columns),) * 2), np.zeros(len(columns))
        for k, lack in enumerate(truth - end for truth, end in zip(truths_of(base), ends, strict=True)):
            own, energy = torch.stack([each[k] for each in slopes]), float(lack @ lack) or 1.0
            gram += (own @ own.T).numpy() / energy
            moment += (own @ lack).numpy() / energy
        return [solve_ridge(gram, moment, np.zeros(len(columns)), damping) for damping in DAMPING]


def ends_of(hooks: Sequence[MatchingHook]) -> list[Tensor]:
    """Returns the final latents of each prompt, all tracks together."""
    return [
        torch.cat([part(final, k, len(hook.prompts)).flatten() for final in hook.final]).double()
        for hook in hooks
        for k in range(len(hook.prompts))
    ]


def truths_of(hooks: Sequence[MatchingHook]) -> list[Tensor]:
    """Returns where full runs of the prompts ended."""
    return [
        torch.cat([part(y[-1], k, len(hook.prompts)).flatten() for y in hook.reference.y]).double()
        for hook in hooks
        for k in range(len(hook.prompts))
    ]


def columns_of(point: Point, plan: Sequence[int]) -> list[Column]:
    """Returns what is refined: the weights of the last step of each stretch between two calls."""
    ends = [*(step - 1 for step in plan[1:]), len(point.times) - 1]
    return [(track, i, k) for track, rows in enumerate(point.rows) for i in ends for k in range(len(rows[i]))]


def refine(
    setup: Setup, prompts: PromptSet, measurement: Measurement, matching: Matching, fit: Fit, effort: float
) -> Matching:
    """Returns a matching with better weights, or the same one where none were found.

    Arguments:
        setup: Who runs, in one process.
        prompts: The prompts of the measurement.
        measurement: What full runs on these prompts gave; at its own times, where the schedule has such.
        matching: What to begin with, on the same prompts.
        fit: What its forecasts use; with the features that they have.
        effort: Runs of one prompt that it may cost, of as many steps as the measurement has.
    """
    fit = replace(fit, features=matching.forecast.features)
    refiner, point = (
        Refiner(setup, prompts, measurement, matching, fit),
        Point(matching.forecast.table[0], matching.times),
    )
    columns = columns_of(point, matching.plan)
    steps, plan = len(point.times), matching.plan
    each = len(plan) + sum(1 + sum(call > step for call in plan) for _, step, _ in columns)  # calls of a prompt
    tested = len(DAMPING) * len(prompts) * len(plan)
    room = int((effort * steps / ITERATIONS - tested) / each)
    sample = min(max(SAMPLE, min(room, 3 * len(prompts) // 4)), len(prompts))
    price = (sample * each + tested) / steps
    if not (columns and matching.until) or not all(run.alike and run.lead == 0 for run in measurement.runs):
        return matching
    if price + len(prompts) * len(plan) / steps > effort:
        return matching
    report = setup.stage(REFINING, int(effort * steps))
    best = errors_of(refiner.run(point, len(prompts)))
    others = slice(sample if sample < len(prompts) else 0, None)
    while refiner.cost + price <= effort:
        found = []
        for change in refiner.solve(point, columns, sample):
            trial = point.moved(columns, change)
            hooks = refiner.run(trial, len(prompts))
            report(int(refiner.cost * steps))
            found.append((float(np.nan_to_num(errors_of(hooks)[others].mean(), nan=np.inf)), trial, hooks))
        least, trial, hooks = min(found, key=lambda entry: entry[0])
        gain = 10 * (float(best[others].mean()) - least) / np.log(10)
        if gain < GAIN or not errors_of(hooks).mean() < best.mean():
            break
        point, best = trial, errors_of(hooks)
        seen = zip(*(hook.innovations for hook in hooks), strict=True)
        matching = replace(
            matching,
            forecast=matching.forecast.model_copy(update={"table": (trial.rows,)}),
            error=float(np.exp(best.mean())), times=trial.times,
            seen=[(row, np.concatenate(values)) for (row, _), values in zip(matching.seen, seen, strict=True)],
        )  # fmt: skip
    report(int(effort * steps))
    return replace(matching, cost=matching.cost + refiner.cost)


def errors_of(hooks: Sequence[MatchingHook]) -> Array:
    """Returns the logarithms of the squared errors that runs end with, by prompt and track."""
    return np.log(np.maximum([error for hook in hooks for error in hook.errors], EXACT))
