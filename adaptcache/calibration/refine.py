"""Joint refinement: all weights of a plan at once, so that runs end nearer to the reference.

Matching chooses the weights of a step by where that step lands, and knows nothing of what comes after. Levenberg and
Marquardt's method goes on from there, on the final latents. Derivatives are differences of runs, in which everything
before the changed weight is replayed. The steps between two calls are one linear map of the same features, so only the
weights of the last step of each such stretch are changed; and the times, where they are a schedule's own. With so many
numbers and few prompts it is easy to learn these by heart. So how far to go is cross-validated: changes are solved for
without some of the prompts, and the same derivatives tell what they would do to those.
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
from .match import EXACT, Fit, Matching, MatchingHook

SAMPLE = 4  # prompts that derivatives are measured on at least; others, if any, tell whether a step is taken
CHANGE = 0.01  # of a weight, for its derivative, and of a gap between two times
DAMPING = tuple(10.0**power for power in range(-6, 1))  # that are compared, relative to each derivative's energy
FOLDS = 4  # of the prompts, for cross-validation
SCALES = (1.0, 0.5)  # of a change, that are run
FLOOR = 1e-3  # of the squared error: what linear extrapolation cannot go below
REFINING = "refining the weights"
GAIN = 0.02  # decibels that an iteration has to bring

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

    measurement: Measurement  # of one process
    matching: Matching  # what is refined
    fit: Fit  # what its forecasts use
    cost: float = field(default=0.0, init=False)  # in runs of one prompt, of as many steps as the measurement has

    def run(self, point: Point, count: int, begun: Sequence[MatchingHook] = (), start: int = 0) -> list[MatchingHook]:
        """Runs the first prompts, and returns what followed each batch.

        Other runs that were followed may have `begun` the same before the sampler's step `start`.
        """
        here, plan = self.measurement.head(count), self.matching.plan
        hooks = list[MatchingHook]()
        fitted = [index for index, row in enumerate(point.rows[0]) if row]
        for number, batch in enumerate(here.setup.batches(here.prompts)):
            reference = replace(here.runs[number], times=point.times)
            hook = MatchingHook(plan, fitted, self.fit, reference, batch, lambda given: np.zeros(0))
            hook.rows, hook.signals = point.rows, [row for row, _ in self.matching.seen]
            hook.own_times = point.times if here.own else ()
            if begun:
                same_time = point.times[: start + 1] == self.at.times[: start + 1]
                hook.begun, hook.start, hook.weighed = begun[number].path, start + same_time, start
            made = here.setup.run(hook, batch)
            self.cost += made.computed * len(batch) / len(point.times)
            hooks.append(hook)
        return hooks

    def solve(self, point: Point, columns: Sequence[Column], count: int) -> Array | None:
        """Returns the changes of some numbers that should bring runs nearer; None if no gain is seen in them."""
        self.at, base = point, self.run(point, count)
        ends, slopes = ends_of(base), list[list[Tensor]]()
        for column in columns:
            track, step, _ = column
            size = CHANGE if track >= 0 else CHANGE * (point.times[step - 1] - point.times[step])
            made = ends_of(self.run(point.moved([column], np.array([size])), count, base, step))
            slopes.append([(other - end) / size for other, end in zip(made, ends, strict=True)])
        gram, moment = np.zeros((count, len(columns), len(columns))), np.zeros((count, len(columns)))
        for k, lack in enumerate(truth - end for truth, end in zip(truths_of(base), ends, strict=True)):
            own, energy = torch.stack([each[k] for each in slopes]), float(lack @ lack) or 1.0
            gram[k], moment[k] = (own @ own.T).numpy() / energy, (own @ lack).numpy() / energy
        return cross_validated(gram, moment)


def cross_validated(gram: Array, moment: Array) -> Array | None:
    """Returns damped least squares, with the damping that does best on prompts left out; None if none gains there.

    Arguments:
        gram: Inner products of the derivatives by prompt, over its squared error, with shape (P, C, C).
        moment: Those with what its run lacks, likewise, with shape (P, C).
    """
    prompts, zero = np.arange(len(gram)), np.zeros(gram.shape[-1])
    best, least = None, -GAIN * np.log(10) / 10
    for damping in DAMPING:
        logs = []
        for fold in (prompts[k :: min(FOLDS, len(prompts))] for k in range(min(FOLDS, len(prompts)))):
            rest = np.setdiff1d(prompts, fold) if len(prompts) > 1 else fold
            change = solve_ridge(gram[rest].sum(0), moment[rest].sum(0), zero, damping)
            left = 1 - 2 * moment[fold] @ change + np.einsum("i,kij,j->k", change, gram[fold], change)
            logs += np.log(np.maximum(left, FLOOR)).tolist()
        if np.mean(logs) < least:
            best, least = damping, float(np.mean(logs))
    return None if best is None else solve_ridge(gram.sum(0), moment.sum(0), zero, best)


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


def columns_of(point: Point, plan: Sequence[int], own: bool) -> list[Column]:
    """Returns what is refined: the weights of the last step of each stretch between two calls, and own times."""
    ends = [*(step - 1 for step in plan[1:]), len(point.times) - 1]
    weights = [(track, i, k) for track, rows in enumerate(point.rows) for i in ends for k in range(len(rows[i]))]
    return [*weights, *((-1, step, 0) for step in range(1, len(point.times)) if own)]


def refine(measurement: Measurement, matching: Matching, fit: Fit, effort: float) -> Matching:
    """Returns a matching with better weights, or the same one where none were found; in one process.

    The effort is in runs of one prompt, of as many steps as the measurement has.
    """
    fit = replace(fit, features=matching.forecast.features)
    refiner, point = Refiner(measurement, matching, fit), Point(matching.forecast.table[0], matching.times)
    columns = columns_of(point, matching.plan, measurement.own)
    steps, plan, prompts = len(point.times), matching.plan, measurement.prompts
    each = len(plan) + sum(1 + sum(call > step for call in plan) for _, step, _ in columns)  # calls of a prompt
    tested, first = len(SCALES) * len(prompts) * len(plan), len(prompts) * len(plan)
    sample = min(max(SAMPLE, int((effort * steps - first - tested) / each)), len(prompts))
    price = (sample * each + tested) / steps
    if not (columns and matching.until) or not all(run.alike and run.lead == 0 for run in measurement.runs):
        return matching
    if price + first / steps > effort:
        return matching
    report = measurement.setup.stage(REFINING, int(effort * steps))
    best = errors_of(refiner.run(point, len(prompts)))
    others = slice(sample if sample < len(prompts) else 0, None)
    while refiner.cost + price <= effort and (change := refiner.solve(point, columns, sample)) is not None:
        found = []
        for scale in SCALES:
            trial = point.moved(columns, scale * change)
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
    """Returns the logarithms of the squared errors that runs end with, by prompt: the mean over its tracks."""
    logs = (np.log(np.maximum(hook.errors, EXACT)).reshape(-1, len(hook.prompts)) for hook in hooks)
    return np.concatenate([log.mean(0) for log in logs])
