"""What is needed of a batch to solve for weights: inner products."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..distributed import ALONE, Ranks
from ..engines.diffusers.gate import Gate
from ..fitting.kernel import Array, fit_open_loop, solve_ridge
from ..fitting.signals import signal_rows
from ..forecasts.history import History
from ..forecasts.matched import Feature, Matched, split_row
from ..hooks import Update
from ..policies.signals import compute_signals
from ..profile import Profile
from ..profiling.reference import Progress, Trajectory, batches, twin
from ..profiling.sensitivity import relative
from ..profiling.statistics import check_finite, part
from ..runs import Call, Prompt, own_noise
from ..step import Step
from .lockstep import Lockstep


@dataclass(frozen=True)
class Moments:
    """What one batch gives at a meeting: inner products, summed over its samples.

    Arguments:
        index: The number of the step.
        track: Which scheduler.
        past: The numbers of the computed steps, newest first.
        gram: Of the K features with each other, with shape (K, K).
        moment: Of the features with the target, with shape (K,).
    """

    index: int
    track: int
    past: tuple[int, ...]
    gram: Array
    moment: Array


def moments_of(
    update: Update, features: Sequence[Tensor], target: Tensor, samples: int, first: int = 0
) -> Moments:
    """Returns the inner products, each sample divided by the energy of its target."""
    for feature in (*features, target):
        check_finite(feature, "by this plan, what a forecast needs", update.step.index, first, samples)
    gram, moment = np.zeros((len(features),) * 2), np.zeros(len(features))
    for k in range(samples):
        a = torch.stack([part(feature, k, samples).flatten() for feature in features]).double()
        b = part(target.to(features[0].device), k, samples).flatten().double()
        energy = float(b @ b) or 1.0
        gram += (a @ a.T).cpu().numpy() / energy
        moment += (a @ b).cpu().numpy() / energy
    return Moments(update.step.index, update.track, update.step.past, gram, moment)


# The model output that a skipped step should have had.

FLAT = 1e-6  # below this slope, relative to the latents, a step does not depend on the model output


def target_of(update: Update, y: Tensor) -> Tensor | None:
    """Returns the model output with which this step lands on `y`; None where that cannot be told.

    Schedulers are affine in the model output (stochastic ones for a given noise): two dry steps give
    the slope, a third checks it, as clipping and thresholding break the rule. In half precision a step
    is lost in the rounding of the latents, so these are made in single precision.
    """
    single = torch.zeros_like(update.move.u, dtype=torch.float32)
    zero, one, two = (update.move.dry(single + value) for value in (0.0, 1.0, 2.0))
    slope, again = one - zero, two - one
    size = slope.abs().mean()
    if size <= FLAT * zero.abs().mean() or (again - slope).abs().max() > 0.05 * size:
        return None
    if update.move.u.dtype != torch.float32:  # other noise is drawn there
        zero = update.move.dry(torch.zeros_like(update.move.u)).float()
    return (y.to(zero) - zero) / slope.mean()


# The visitor that follows a plan while its weights are fitted, and what a forecast of it may use.


@dataclass(frozen=True)
class Fit:
    """What a forecast may use and how firmly it is held.

    Arguments:
        history: How many computed outputs are used, 1 to 6.
        features: What is used besides, as in `Matched`; "past_x" only where the sampler adds noise, as
            elsewhere it says what the others say.
        ridge: Pull towards the open-loop weights, relative to each feature's energy.
    """

    history: int = 4
    features: tuple[Feature, ...] = ("past_x", "x", "x0")
    ridge: float = 1e-5


class Follower:
    """Follows a plan with one batch of prompts, and meets the others wherever a forecast is due."""

    def __init__(
        self, plan: Sequence[int], fit: Fit, reference: Trajectory, samples: int, first: int = 0,
        looks: Sequence[tuple[float, ...]] = (),
    ) -> None:  # fmt: skip
        self.plan, self.fit, self.reference, self.samples = set(plan), fit, reference, samples
        self.first, self.looks = first, looks
        self.innovations: list[Array] = []  # of each computed step after the first, in decades
        self.errors: list[float] = []  # of the final latents: squared, over the energy of the reference's
        self.meet: Callable[[Moments], Array]

    def begin(self, times: tuple[float, ...]) -> None:
        self.history = History(self.fit.history, "past_x" in self.fit.features)

    def computes(self, step: Step) -> bool:
        return step.index in self.plan

    def update(self, update: Update) -> Tensor:
        if update.computed and update.track == 0 and (before := len(update.step.past)):
            outputs = [update.move.u, *self.history.streams[0].past]
            seen = compute_signals([self.looks[before - 1]], outputs)
            self.innovations.append(seen[:, 0].double().cpu().numpy())
        self.history.record(update.track, update)
        if update.computed:
            return update.move.u
        index, track = update.step.index, update.track
        target = target_of(update, self.reference.y[track][index])
        if target is None:  # fit the output itself, without undoing earlier errors
            target = self.reference.u[track][index]
        features = self.history.features(update.track, update.x, self.fit.features)
        weights = self.meet(moments_of(update, features, target, self.samples, self.first))
        named = split_row(weights.tolist(), self.fit.features)
        return self.history.combine(named, update.track, update.x)

    def landed(self, update: Update, y: Tensor) -> None:
        if update.step.index == len(self.reference.times) - 1:
            made, truth = y.cpu(), self.reference.y[update.track][-1]
            parts = ((part(made, k, self.samples), part(truth, k, self.samples)) for k in range(self.samples))
            self.errors += [relative(*pair) for pair in parts]

    def end(self) -> None:
        self.history = History(0)


# Trajectory matching: weights with which the scheduler lands where the full run landed.
#
# The steps are gone through once, in order, with all prompts, following the plan. Where the denoiser is
# not called, the target is the model output that would have led from the latents as they are to the
# reference's next latents, and the weights are fitted to it over all prompts at once. Then everybody
# goes on with the forecast, so later steps learn to undo the errors of earlier ones.
#
# All prompts must be at the same step: fitting whole runs and repeating diverges. So every batch runs
# in a thread of its own, on a twin of the pipeline, in lockstep.

Given = TypeVar("Given")

LOOKED_AT = 4  # earlier outputs that an innovation is taken against
EXACT = 1e-30  # relative energy: nothing is told apart below


@dataclass(frozen=True)
class Matching:
    """A fitted forecast, and how well its runs ended.

    Arguments:
        forecast: The weights, with one gear.
        error: Squared error of the final latents, over the energy of the reference's: the geometric mean
            over calibration prompts and tracks, as what people look at is the mean of decibels.
        seen: What the runs showed at each computed step after the first, for a guard: an innovation as
            weights of outputs, newest first, and that of each prompt in decades.
    """

    forecast: Matched
    error: float
    seen: list[tuple[tuple[float, ...], Array]] = field(compare=False)


def solved(given: Sequence[Moments], profile: Profile, fit: Fit) -> Array:
    """Returns the weights for what all batches gave at a meeting, pulled towards the open-loop ones."""
    index, known = given[0].index, list(given[0].past[: fit.history])
    latents = {"past_x": known, "x": [index], "x0": [0]}
    sources = known + [profile.steps + at for name in fit.features for at in latents[name]]
    prior = fit_open_loop(profile.gram.mean(axis=0), index, sources)
    gram = np.sum([moments.gram for moments in given], axis=0)
    moment = np.sum([moments.moment for moments in given], axis=0)
    return solve_ridge(gram, moment, prior, fit.ridge)


def met(team: Lockstep[Moments, Array], member: int, moments: Moments) -> Array:
    """Meets the others, in a way that their schedulers' noise does not change this member's."""
    with own_noise():
        return team.meet(member, moments)


def match(
    pipe: Any,
    call: Call,
    prompts: Sequence[Prompt],
    plan: Sequence[int],
    profile: Profile,
    runs: Sequence[Trajectory],
    *,
    fit: Fit = Fit(),
    batch_size: int = 1,
    ranks: Ranks = ALONE,
    progress: Progress = lambda done: None,
) -> Matching:
    """Fits the weights of one plan.

    Arguments:
        pipe: A diffusers pipeline; it is not changed.
        call: How to call it.
        prompts: The P prompts of the profile.
        plan: The numbers of the computed steps; the first is 0.
        profile: What was measured on these prompts; gives the open-loop weights.
        runs: The reference trajectories of this rank's batches.
        fit: What the forecast may use.
        batch_size: The one used for the profile.
        ranks: Who shares the batches: at each meeting the inner products are summed over all of them.
        progress: Told the number of steps done after each forecast.

    Returns:
        The forecast, and the error its runs end with.
    """
    if not profile.noisy:
        fit = replace(fit, features=tuple(name for name in fit.features if name != "past_x"))
    jobs = list(batches(prompts, batch_size))
    own = ranks.own(len(jobs))
    tracks = max(ranks.exchange(len(runs[0].u) if runs else 0))
    table: list[list[tuple[float, ...]]] = [[() for _ in range(profile.steps)] for _ in range(tracks)]

    def solve(mine: list[Moments]) -> Array:
        given = in_order(ranks.exchange(mine))
        index, weights = given[0].index, solved(given, profile, fit)
        table[given[0].track][index] = tuple(map(float, weights))
        progress(index + 1)
        return weights

    team: Lockstep[Moments, Array] = Lockstep(max(len(own), 1), solve)
    errors = [list[float]() for _ in own]
    innovations = [list[Array]() for _ in own]
    looks = [rows[0] for rows in signal_rows(profile.kernel, plan, min(fit.history, LOOKED_AT))]

    def follow(member: int) -> None:
        first, batch = jobs[own[member]]
        follower = Follower(plan, fit, runs[member], len(batch), first, looks)
        follower.meet = partial(met, team, member)
        other = twin(pipe)
        with closing(Gate(other, follower).open()):
            call(other, batch, first)
        if not all(map(math.isfinite, follower.errors)):
            raise ValueError(
                f"by the plan {list(plan)} the runs from prompt {first} on end in no finite latents"
            )
        errors[member], innovations[member] = follower.errors, follower.innovations

    if own:
        with own_noise():
            team.run([partial(follow, member) for member in range(len(own))])
    else:  # more ranks than batches: this one only listens
        for _ in range((profile.steps - len(plan)) * tracks):
            solve([])
    forecast = Matched(history=fit.history, features=fit.features, table=(tuple(map(tuple, table)),))
    ends = np.concatenate(in_order(ranks.exchange(errors)))
    seen = map(np.concatenate, zip(*in_order(ranks.exchange(innovations)), strict=True))
    error = float(np.exp(np.log(np.maximum(ends, EXACT)).mean()))
    return Matching(forecast, error, list(zip(looks, seen, strict=True)))


def in_order(given: list[list[Given]]) -> list[Given]:
    """Returns what ranks give for each of their batches, in the order of the batches."""
    return [value for turn in itertools.zip_longest(*given) for value in turn if value is not None]


# Fits the weights of a forecast while the calibration prompts follow the plan in lockstep.
