"""Trajectory matching: weights with which the scheduler lands where the full run landed.

The steps are gone through once, in order, with all prompts, following the plan. Where the denoiser is
not called, the target is the model output that would have led from the latents as they are to the
reference's next latents, and the weights are fitted to it over all prompts at once. Then everybody
goes on with the forecast, so later steps learn to undo the errors of earlier ones.

All prompts must be at the same step: fitting whole runs and repeating diverges. So every batch runs
in a thread of its own, on a twin of the pipeline, in lockstep.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..call import Call, Prompt, own_noise
from ..clock import Step
from ..fitting.kernel import Array, open_loop, shrunk
from ..forecasts.base import Weights
from ..forecasts.history import History
from ..forecasts.matched import Matched
from ..gate import Gate, Update
from ..profiling.influence import relative
from ..profiling.profile import Profile
from ..profiling.record import Progress, Trajectory, batches, twin
from ..profiling.statistics import check_finite, part
from ..ranks import ALONE, Ranks
from .lockstep import Lockstep

__all__ = ["Fit", "Matching", "match", "target_of"]

Given = TypeVar("Given")

FLAT = 1e-6  # below this slope, relative to the latents, a step does not depend on the model output


@dataclass(frozen=True)
class Fit:
    """What a forecast may use and how firmly it is held.

    Arguments:
        history: How many computed outputs are used, 1 to 6.
        features: What is used besides: "x", the latents before the step; "x0", before the first step.
        ridge: Pull towards the open-loop weights, relative to each feature's energy.
    """

    history: int = 4
    features: tuple[Literal["x", "x0"], ...] = ("x", "x0")
    ridge: float = 1e-5


@dataclass(frozen=True)
class Matching:
    """A fitted forecast, and how well its runs ended.

    Arguments:
        forecast: The weights, with one gear.
        error: Mean squared error of the final latents, over the energy of the reference's, on the
            calibration prompts; summed over tracks.
    """

    forecast: Matched
    error: float


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


class Follower:
    """Follows a plan with one batch of prompts, and meets the others wherever a forecast is due."""

    def __init__(
        self, plan: Sequence[int], fit: Fit, reference: Trajectory, samples: int, first: int = 0
    ) -> None:
        self.plan, self.fit, self.reference, self.samples = set(plan), fit, reference, samples
        self.first = first
        self.error = 0.0  # of the final latents: squared, over the energy of the reference's
        self.meet: Callable[[Moments], Array]

    def begin(self, times: tuple[float, ...]) -> None:
        self.history = History(self.fit.history)

    def computes(self, step: Step) -> bool:
        return step.index in self.plan

    def update(self, update: Update) -> Tensor:
        self.history.see(update)
        if update.computed:
            return update.move.u
        index, track = update.step.index, update.track
        target = target_of(update, self.reference.y[track][index])
        if target is None:  # fit the output itself, without undoing earlier errors
            target = self.reference.u[track][index]
        features = self.history.features(update, self.fit.features)
        weights = self.meet(moments_of(update, features, target, self.samples, self.first))
        return self.history.combined(named(weights, self.fit), update)

    def landed(self, update: Update, y: Tensor) -> None:
        if update.step.index == len(self.reference.times) - 1:
            self.error += relative(y.cpu(), self.reference.y[update.track][-1])

    def end(self) -> None:
        self.history = History(0)


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


def named(weights: Array, fit: Fit) -> Weights:
    """Returns a vector of weights by name: outputs first, then the features in their order."""
    past = len(weights) - len(fit.features)
    rest = dict(zip(fit.features, map(float, weights[past:]), strict=True))
    return Weights(tuple(map(float, weights[:past])), rest.get("x", 0.0), rest.get("x0", 0.0))


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
    n, jobs = profile.steps, list(batches(prompts, batch_size))
    own = ranks.own(len(jobs))
    tracks = max(ranks.exchange(len(runs[0].u) if runs else 0))
    table: list[list[tuple[float, ...]]] = [[() for _ in range(n)] for _ in range(tracks)]

    def solve(mine: list[Moments]) -> Array:
        given = in_order(ranks.exchange(mine))
        index, track = given[0].index, given[0].track
        known = list(given[0].past[: fit.history])
        sources = known + [{"x": n + index, "x0": n}[name] for name in fit.features]
        prior = open_loop(profile.gram.mean(axis=0), index, sources)
        gram = np.sum([moments.gram for moments in given], axis=0)
        moment = np.sum([moments.moment for moments in given], axis=0)
        weights = shrunk(gram, moment, prior, fit.ridge)
        table[track][index] = tuple(map(float, weights))
        progress(index + 1)
        return weights

    team: Lockstep[Moments, Array] = Lockstep(max(len(own), 1), solve)
    errors = [0.0] * len(own)

    def follow(member: int) -> None:
        first, batch = jobs[own[member]]
        follower = Follower(plan, fit, runs[member], len(batch), first)
        follower.meet = partial(met, team, member)
        other = twin(pipe)
        gate = Gate(other, follower).open()
        try:
            call(other, batch, first)
        finally:
            gate.close()
        if not math.isfinite(follower.error):
            raise ValueError(
                f"by the plan {list(plan)} the runs from prompt {first} on end in no finite latents"
            )
        errors[member] = follower.error * len(batch) / len(prompts)

    if own:
        with own_noise():
            team.run([partial(follow, member) for member in range(len(own))])
    else:  # more ranks than batches: this one only listens
        for _ in range((n - len(plan)) * tracks):
            solve([])
    forecast = Matched(history=fit.history, features=fit.features, table=(tuple(map(tuple, table)),))
    return Matching(forecast, sum(in_order(ranks.exchange(errors))))


def in_order(given: list[list[Given]]) -> list[Given]:
    """Returns what ranks give for each of their batches, in the order of the batches."""
    return [value for turn in itertools.zip_longest(*given) for value in turn if value is not None]
