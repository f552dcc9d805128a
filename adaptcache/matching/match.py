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
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np

from ..call import Call, Prompt, own_noise
from ..fitting.kernel import Array, open_loop, shrunk
from ..fitting.looks import look_rows
from ..forecasts.matched import Matched
from ..gate import Gate
from ..profiling.profile import Profile
from ..profiling.record import Progress, batches, twin
from ..profiling.trajectory import Trajectory
from ..ranks import ALONE, Ranks
from .follower import Fit, Follower
from .lockstep import Lockstep
from .moments import Moments

__all__ = ["Matching", "match"]

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
    prior = open_loop(profile.gram.mean(axis=0), index, sources)
    gram = np.sum([moments.gram for moments in given], axis=0)
    moment = np.sum([moments.moment for moments in given], axis=0)
    return shrunk(gram, moment, prior, fit.ridge)


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
    fit: Fit = Fit(),  # noqa: B008 - frozen
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
    looks = [rows[0] for rows in look_rows(profile.kernel, plan, min(fit.history, LOOKED_AT))]

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
