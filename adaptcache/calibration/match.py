"""Trajectory matching: weights with which the scheduler lands where the reference run landed.

The steps are gone through once, in order, with all prompts, following the plan. Where the denoiser is
not called, the target is the model output that would have led from the latents as they are to the
reference's next latents, and the weights are fitted to it over all prompts at once. Then every prompt
goes on with the forecast, so later steps learn to undo the errors of earlier ones.

All prompts must be at the same step: fitting whole runs and repeating diverges. So every batch runs
in a thread of its own, in lockstep.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from ..errors import ScheduleError
from ..fitting.kernel import Array, fit_open_loop, solve_ridge
from ..fitting.signals import signal_rows
from ..forecasts.base import History
from ..forecasts.matched import LISTED, Feature, Matched, split_row
from ..hooks import SchedulerStep, StepHook
from ..limits import TRACKS
from ..policies.plan import Plan
from ..policies.signals import compute_signals
from ..profile import Profile
from ..profiling.measure import Measurement
from ..profiling.reference import Trajectory
from ..profiling.statistics import check_finite, part, relative_error
from ..runs import PromptSet, fork_rng, in_double
from ..schedule.format import same_grid
from ..schedule.rule import Rule
from ..step import Step
from .lockstep import Lockstep

Given = TypeVar("Given")

SIGNAL_HISTORY = 4  # earlier outputs that an innovation is taken against
EXACT = 1e-30  # relative energy: nothing is told apart below
FLAT = 1e-6  # below this slope, relative to the latents, a step does not depend on the model output


@dataclass(frozen=True)
class Fit:
    """What a forecast may use and how firmly it is held.

    Arguments:
        history: How many computed outputs are used, 1 to 6.
        features: What is used besides, as in `Matched`; "past_x" only where the sampler adds noise, as elsewhere it
            says what the others say; "past_c" only where guidance makes each output of two.
        ridge: Pull towards the open-loop weights, relative to each feature's energy.
        correct: Whether computed steps after a skipped one get weights too, pulled towards their own output.
    """

    history: int = 4
    features: tuple[Feature, ...] = ("past_x", "past_c", "x", "x0")
    ridge: float = 1e-5
    correct: bool = True

    def steps(self, plan: Sequence[int], measurement: Measurement) -> list[int]:
        """Returns the steps with weights: skipped ones, and those after the first of them, or after none of a finer
        reference."""
        steps, everything = range(measurement.profile.steps), measurement.setup.refine > 1 or measurement.own
        first = 0 if everything else min(set(steps) - set(plan), default=len(steps))
        return [i for i in steps if i not in plan or (self.correct and i >= first)]


@dataclass(frozen=True)
class NormalEquations:
    """What one batch gives at a meeting: inner products, summed over its samples."""

    index: int  # the number of the step
    track: int  # which scheduler
    past: tuple[int, ...]  # the numbers of the computed steps, newest first; this step too, if it is computed
    gram: Array  # of the K features with each other, with shape (K, K)
    moment: Array  # of the features with the target, with shape (K,)

    @classmethod
    def of(
        cls, step: SchedulerStep, past: tuple[int, ...], features: Sequence[Tensor], target: Tensor, prompts: PromptSet
    ) -> NormalEquations:
        """Returns the inner products, each sample divided by the energy of its target."""
        for feature in (*features, target):
            check_finite(feature, "by this plan, what a forecast needs", step.step.index, prompts)
        gram, moment, samples = np.zeros((len(features),) * 2), np.zeros(len(features)), len(prompts)
        for k in range(samples):
            a = in_double(torch.stack([part(feature, k, samples).flatten() for feature in features]))
            b = in_double(part(target.to(features[0].device), k, samples).flatten())
            energy = float(b @ b) or 1.0
            gram += (a @ a.T).cpu().numpy() / energy
            moment += (a @ b).cpu().numpy() / energy
        return cls(step.step.index, step.track, past, gram, moment)


def solve(given: Sequence[NormalEquations], profile: Profile, fit: Fit) -> Array:
    """Returns the weights for what all batches gave at a meeting, pulled towards the open-loop ones."""
    index, known = given[0].index, list(given[0].past[: fit.history])
    latents = {"past_x": known, "past_c": [], "x": [index], "x0": [0]}
    sources = known + [profile.steps + at for name in fit.features for at in latents[name]]
    prior = fit_open_loop(profile.gram.mean(axis=0), index, sources)
    if "past_c" in fit.features:  # the guided outputs tell nearly all
        before = len(known) * (1 + ("past_x" in fit.features))
        prior = np.insert(prior, [before] * len(known), 0.0)
    gram = np.sum([equations.gram for equations in given], axis=0)
    moment = np.sum([equations.moment for equations in given], axis=0)
    return solve_ridge(gram, moment, prior, fit.ridge)


def target_output(step: SchedulerStep, y: Tensor) -> Tensor | None:
    """Returns the model output with which this step lands on `y`; None where that cannot be told.

    Schedulers are affine in the model output (stochastic ones for a given noise): two previews give
    the slope, a third checks it, as clipping and thresholding break the rule. In half precision a step
    is lost in the rounding of the latents, so these are made in single precision.
    """
    single = torch.zeros_like(step.u, dtype=torch.float32)
    zero, one, two = (step.preview(single + value) for value in (0.0, 1.0, 2.0))
    slope, again = one - zero, two - one
    size = slope.abs().mean()
    if size <= FLAT * zero.abs().mean() or (again - slope).abs().max() > 0.05 * size:
        return None
    if step.u.dtype != torch.float32:  # other noise is drawn there
        zero = step.preview(torch.zeros_like(step.u)).float()
    return (y.to(zero) - zero) / slope.mean()


# By track and step: computed output, what was given, and the output with the prompt.
Path = dict[tuple[int, int], tuple[Tensor | None, Tensor, Tensor | None]]


class MatchingHook(StepHook):
    """Follows a plan with one batch of prompts, and meets the others wherever a forecast is due.

    Where another plan begins alike, its path is replayed, without a call of the denoiser after the first: its computed
    outputs before step `start`, and what was given to the sampler before step `weighed`.

    Arguments:
        plan: The numbers of the computed steps.
        fitted: The numbers of the steps with weights.
        reference: The trajectory of the batch.
        meet: Gives the common weights for what this batch gives.
    """

    follows_views = follows_loops = False

    def __init__(
        self, plan: Sequence[int], fitted: Sequence[int], fit: Fit, reference: Trajectory, prompts: PromptSet,
        meet: Callable[[NormalEquations], Array],
    ) -> None:  # fmt: skip
        self.plan, self.fitted, self.fit = sorted(plan, reverse=True), set(fitted), fit
        self.reads_branches = "past_c" in fit.features
        self.path: Path = {}
        self.start, self.weighed, self.begun = 0, 0, self.path
        self.reference, self.prompts, self.meet = reference, prompts, meet
        self.rows: Sequence[
            Sequence[Sequence[float]]
        ] = ()  # by track and step: weights to run by, where these are known
        self.forced = False  # whether calls were made that the plan does not have
        self.final: list[Tensor] = []  # the latents that each track ends at
        self.signals: Sequence[tuple[float, ...]] = ()  # of each computed step after the first: its innovation
        self.innovations: list[Array] = []  # likewise, in decades
        self.errors: list[float] = []  # of the final latents: squared, over the energy of the reference's

    def follows(self, times: tuple[float, ...]) -> bool:
        return same_grid(times[: len(self.reference.times)], self.reference.times)

    def on_grid(self, times: tuple[float, ...]) -> None:
        if not same_grid(times, self.reference.full):
            raise ScheduleError(
                f"own times need runs of the whole grid, and these take {len(self.reference.full)} of its "
                f"{len(times)} steps (strength?): calibrate on the grid (times='grid')"
            )

    def on_run_start(self, times: tuple[float, ...]) -> None:
        self.history = History(self.fit.history, "past_x" in self.fit.features)

    def should_compute(self, step: Step) -> bool:
        return step.index in self.plan and step.index >= self.start

    def model_output(self, step: SchedulerStep) -> Tensor:
        index, track = step.step.index, step.track
        if step.made and index not in self.plan:  # a replayed step that had to be called is still the one it was
            self.forced = True
            return step.u
        own, given, cond = self.begun[track, index] if index < self.start else (step.u, None, None)
        given = given if index < self.weighed else None
        if index in self.plan:
            assert own is not None
            own = own.to(step.u)
            if self.reads_branches:
                cond = step.with_prompt if cond is None else cond.to(step.u)
            self._record(step, own, cond)
        if given is None:
            given = self._weigh(step) if index in self.fitted else step.u
        own, cond = (v.cpu() if v is not None and index in self.plan else None for v in (own, cond))
        self.path[track, index] = own, given.cpu(), cond
        return given.to(step.u)

    def _record(self, step: SchedulerStep, own: Tensor, cond: Tensor | None) -> None:
        """Notes a computed output, and how unforeseen it was."""
        before = sum(index < step.step.index for index in self.plan)
        key, lead = (step.track, 0), self.reference.lead
        if self.reference.at(step.track) == lead >= step.track and before:
            seen = compute_signals([self.signals[before - 1]], [own, *self.history.streams[key].past])
            self.innovations.append(seen[:, 0].cpu().double().numpy())
        self.history.keep(key, step.x, own, cond=cond)

    def _weigh(self, step: SchedulerStep) -> Tensor:
        """Returns the weighted sum with the common weights of this step."""
        index, track, key = step.step.index, self.reference.at(step.track), (step.track, 0)
        if self.rows:
            return self.history.combine(split_row(self.rows[track][index], self.fit.features), key, step.x)
        target = target_output(step, self.reference.y[track][index]) if self.reference.alike else None
        if target is None:  # fit the output itself, without undoing earlier errors
            target = self.reference.u[track][index]
        features = self.history.features(key, step.x, self.fit.features)
        past = tuple(computed for computed in self.plan if computed <= index)
        weights = self.meet(NormalEquations.of(step, past, features, target, self.prompts))
        return self.history.combine(split_row(tuple(weights.tolist()), self.fit.features), key, step.x)

    def on_step_end(self, step: SchedulerStep, latents: Tensor) -> None:
        if step.step.index == len(self.reference.times) - 1:
            self.final.append(latents.cpu())
            made, samples = latents.cpu(), len(self.prompts)
            truth = self.reference.y[self.reference.at(step.track)][-1]
            pairs = ((part(made, k, samples), part(truth, k, samples)) for k in range(samples))
            self.errors += [relative_error(*pair) for pair in pairs]

    def on_run_end(self) -> None:
        self.history = History(0)


@dataclass(frozen=True)
class Matching:
    """A fitted forecast, and how well its runs ended."""

    forecast: Matched  # the weights, with one gear
    # squared error of the final latents, over the energy of the reference's: the geometric mean over calibration
    # prompts and tracks, as what people look at is the mean of decibels
    error: float
    # what the runs showed at each computed step after the first, for a guard: an innovation as weights of outputs,
    # newest first, and that of each prompt in decades
    seen: list[tuple[tuple[float, ...], Array]] = field(compare=False)
    cost: float = 0.0  # denoiser calls that were made, in full runs of one prompt
    plan: tuple[int, ...] = ()
    times: tuple[float, ...] = ()  # the times of its steps
    # the step before which others can begin like these; 0 where calls were made that the plan does not have
    until: int = sys.maxsize
    # how the runs of this rank's batches went
    paths: list[Path] = field(default_factory=list, compare=False, repr=False)
    # the logarithms of the squared errors that `error` is the mean of, by prompt, for paired tests
    ends: Array = field(default_factory=lambda: np.zeros(0), compare=False, repr=False)

    @property
    def rule(self) -> Rule:
        """The plan and its weights, with what the runs showed."""
        return Rule(policy=Plan.of(self.plan, self.times).with_signals(self.seen), forecast=self.forecast)


def match(
    measurement: Measurement,
    plan: Sequence[int],
    fit: Fit = Fit(),
    progress: Callable[[int], None] = lambda done: None,
    begun: Matching | None = None,
) -> Matching:
    """Fits the weights of one plan; at each meeting the inner products are summed over all ranks.

    Arguments:
        measurement: The full runs to land where they did; the profile has the open-loop weights.
        plan: The numbers of the computed steps; the first is 0.
        progress: Called with the number of steps done after each forecast.
        begun: Of another plan on the same prompts: where both begin alike, nothing is computed again.

    Returns:
        The forecast, and the error its runs end with.
    """
    setup, profile, runs = measurement.setup, measurement.profile, measurement.runs
    ranks = setup.ranks
    lead = max(ranks.exchange(runs[0].lead if runs else 0))
    if not all(ranks.exchange(all(run.alike for run in runs))):
        fit, begun = replace(fit, features=()), None  # where shapes change, calls are made that no plan has
    if not profile.noisy:
        fit = replace(fit, features=tuple(name for name in fit.features if name != "past_x"))
    if not all(ranks.exchange(all(run.guided for run in runs))):
        fit = replace(fit, features=tuple(name for name in fit.features if name != "past_c"))
    jobs = setup.batches(measurement.prompts)
    own = ranks.own(len(jobs))
    tracks, fitted = max(ranks.exchange(len(runs[0].u) if runs else 0)), fit.steps(plan, measurement)
    table: list[list[tuple[float, ...]]] = [[() for _ in range(profile.steps)] for _ in range(min(tracks, TRACKS))]
    times, start, weighed = tuple(map(float, profile.times)), 0, 0
    if begun:
        start = weighed = min({*set(plan) ^ set(begun.plan), begun.until, profile.steps})
        if moved := [i for i, (a, b) in enumerate(zip(times, begun.times, strict=True)) if a != b]:
            start, weighed = min(start, moved[0]), min(start, moved[0] - 1)  # the step before leads there
        for track, rows in enumerate(begun.forecast.table[0]):
            table[track][:weighed] = rows[:weighed]

    def solve_together(mine: list[NormalEquations]) -> Array:
        given = in_order(ranks.exchange(mine))
        index, track = given[0].index, given[0].track
        if track >= TRACKS:  # a scheduler a frame: those that a schedule has no room for run by the last one's weights
            return np.array(table[TRACKS - 1][index])
        weights = solve(given, profile, fit)
        table[track][index] = tuple(map(float, weights))
        progress(index + 1)
        return weights

    team: Lockstep[NormalEquations, Array] = Lockstep(max(len(own), 1), solve_together)
    signals = [rows[0] for rows in signal_rows(profile.kernel, plan, min(fit.history, SIGNAL_HISTORY))]
    hooks: list[MatchingHook] = []
    for member, number in enumerate(own):
        hooks.append(MatchingHook(plan, fitted, fit, runs[member], jobs[number], partial(meet, team, member)))
        hooks[-1].signals, hooks[-1].start, hooks[-1].weighed = signals, start, weighed
        hooks[-1].own_times = times if measurement.own else ()
        if begun:
            hooks[-1].begun = begun.paths[member]
    cost: list[float] = []

    def follow(hook: MatchingHook) -> None:
        made = setup.run(hook, hook.prompts)
        cost.append(made.computed * len(hook.prompts) / profile.steps)
        if not all(map(math.isfinite, hook.errors)):
            raise ValueError(
                f"by the plan {list(plan)} the runs from prompt {hook.prompts.first} on end in no finite latents"
            )

    if own:
        with fork_rng():
            team.run([partial(follow, hook) for hook in hooks])
    else:  # more ranks than batches: this one only listens
        for _ in range(sum(index >= weighed for index in fitted) * (tracks - lead)):
            solve_together([])
    for index in sorted(set(range(profile.steps)) - set(plan)):  # computed all the same, or a scheduler never stepped
        for own_rows in table:
            if not own_rows[index]:
                known = [at for at in reversed(plan) if at < index][: fit.history]
                known_row = fit_open_loop(profile.gram.mean(axis=0), index, known)
                own_rows[index] = table[lead][index] or (*map(float, known_row), *[0.0] * columns(fit, len(known)))
    forecast = Matched(history=fit.history, features=fit.features, table=(tuple(map(tuple, table)),))
    errors = in_order(ranks.exchange([hook.errors for hook in hooks]))
    logs = (np.log(np.maximum(of_tracks, EXACT)) for of_tracks in errors)
    ends = np.concatenate([log.reshape(-1, len(job)).mean(0) for log, job in zip(logs, jobs, strict=True)])
    innovations = in_order(ranks.exchange([hook.innovations for hook in hooks]))
    seen = map(np.concatenate, zip(*innovations, strict=True))
    error = float(np.exp(ends.mean()))
    paid = sum(itertools.chain(*ranks.exchange(sorted(cost))))
    paths = [hook.path for hook in hooks]
    until = 0 if any(ranks.exchange(any(hook.forced for hook in hooks))) else sys.maxsize
    shown = list(zip(signals, seen, strict=True))
    return Matching(forecast, error, shown, paid, tuple(plan), times, until, paths, ends)


def columns(fit: Fit, outputs: int) -> int:
    """Returns how many weights a row has besides those of its outputs."""
    return sum(outputs if name in LISTED else 1 for name in fit.features)


def meet(team: Lockstep[NormalEquations, Array], member: int, given: NormalEquations) -> Array:
    """Meets the others, in a way that their schedulers' noise does not change this member's."""
    with fork_rng():
        return team.meet(member, given)


def in_order(given: list[list[Given]]) -> list[Given]:
    """Returns what ranks give for each of their batches, in the order of the batches."""
    return [value for turn in itertools.zip_longest(*given) for value in turn if value is not None]
