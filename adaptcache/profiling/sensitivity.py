"""The output-error curve: what a forecast at one step alone does to the final latents."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from ..distributed import ALONE, Ranks
from ..engines.diffusers.gate import Gate
from ..hooks import Update
from ..profile import Profile
from ..runs import Call, Prompt
from ..step import Step
from .reference import Progress, Trajectory, twin

if TYPE_CHECKING:
    from .cache import Parts

__all__ = ["relative", "with_influence"]

LEAST = 1e-12  # relative energy of a forecast error that is only rounding


class Nudge:
    """Replays the reference up to one step, linearly extrapolates there, and computes the rest.

    Replayed steps cost no denoiser call: until then nothing differs from the reference.
    """

    def __init__(self, at: int, reference: Trajectory) -> None:
        self.at, self.reference = at, reference
        self.error, self.final = 0.0, 0.0  # squared and relative, of the forecast and of the end result

    def begin(self, times: tuple[float, ...]) -> None:
        """The grid is the reference's."""

    def computes(self, step: Step) -> bool:
        return step.index == 0 or step.index > self.at

    def update(self, update: Update) -> Tensor:
        index, known = update.step.index, self.reference.u[update.track]
        if index > self.at:
            return update.move.u
        if index < self.at:
            return known[index].to(update.move.u)
        guess = 2 * known[index - 1] - known[index - 2] if index > 1 else known[index - 1]
        self.error += relative(guess, known[index])
        return guess.to(update.move.u)

    def landed(self, update: Update, y: Tensor) -> None:
        if update.step.index == len(self.reference.times) - 1:
            self.final += relative(y.cpu(), self.reference.y[update.track][-1])

    def end(self) -> None:
        """Two numbers stay."""


def relative(value: Tensor, truth: Tensor) -> float:
    """Returns the squared error over the energy of the truth."""
    value, truth = value.double(), truth.double()
    return float((value - truth).square().sum() / truth.square().sum().clamp_min(1e-30))


def with_influence(
    pipe: Any,
    call: Call,
    prompts: Sequence[Prompt],
    profile: Profile,
    run: Trajectory | None,
    *,
    kept: Parts | None = None,
    ranks: Ranks = ALONE,
    progress: Progress = lambda done: None,
) -> Profile:
    """Measures the influence of each step on one batch: N - 1 runs of half the length on average.

    Arguments:
        pipe: A diffusers pipeline; it is not changed.
        call: How to call it.
        prompts: A few prompts of the profile, in one batch.
        profile: The profile to complete.
        run: Their reference trajectory; only rank 0 needs it.
        kept: Where values are kept as they are measured, and taken from when all is done again.
        ranks: Who shares the runs.
        progress: Told the number of steps done after each run.

    Returns:
        The profile with an influence of shape (1, N). Step 0 is always computed and has the largest.
    """
    own, reference = twin(pipe), shared(run, ranks)
    known: dict[int, float] = {}
    for found in ranks.exchange(kept.load_influence() if kept else {}):
        known |= found
    missing = [at for at in range(1, profile.steps) if at not in known]

    def work(number: int) -> float:
        nudge = Nudge(missing[number], reference)
        with closing(Gate(own, nudge).open()):
            call(own, prompts)
        known[missing[number]] = nudge.final / max(nudge.error, LEAST)
        if kept:
            kept.save_influence(known)
        return known[missing[number]]

    before = profile.steps - 1 - len(missing)
    measured = ranks.each(len(missing), work, lambda done: progress(before + done))
    known |= dict(zip(missing, measured, strict=True))
    values = [0.0]
    for at in range(1, profile.steps):
        # A forecast that makes the run overflow is as bad as any that was seen.
        values.append(known[at] if math.isfinite(known[at]) else max(values))
    values[0] = max(values)
    return replace(profile, influence=np.array([values]))


def shared(run: Trajectory | None, ranks: Ranks) -> Trajectory:
    """Returns what a nudge needs of the trajectory that rank 0 has, on all ranks; a tensor at a time."""
    if ranks.size == 1:
        assert run is not None
        return run
    times, tracks = ranks.first((run.times, len(run.u)) if run else ((), 0))

    def value(kind: str, track: int, at: int) -> Tensor:
        found: Tensor | None = ranks.first(getattr(run, kind)[track][at] if run else None)
        assert found is not None
        return found

    u = [[value("u", track, at) for at in range(len(times))] for track in range(tracks)]
    return Trajectory(times, u, y=[[value("y", track, -1)] for track in range(tracks)])
