"""The output-error curve: what a forecast at one step alone does to the final latents."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from ..call import Call, Prompt
from ..clock import Step
from ..gate import Gate, Update
from .profile import Profile
from .record import Progress, Trajectory, twin

if TYPE_CHECKING:
    from .parts import Parts

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
    run: Trajectory,
    *,
    kept: Parts | None = None,
    progress: Progress = lambda done: None,
) -> Profile:
    """Measures the influence of each step on one batch: N - 1 runs of half the length on average.

    Arguments:
        pipe: A diffusers pipeline; it is not changed.
        call: How to call it.
        prompts: A few prompts of the profile, in one batch.
        profile: The profile to complete.
        run: Their reference trajectory.
        kept: Where values are kept as they are measured, and taken from when all is done again.
        progress: Told the number of steps done after each run.

    Returns:
        The profile with an influence of shape (1, N). Step 0 is always computed and has the largest.
    """
    own, values = twin(pipe), kept.load_influence(profile.steps) if kept else [0.0]
    for at in range(len(values), profile.steps):
        nudge = Nudge(at, run)
        gate = Gate(own, nudge).open()
        try:
            call(own, prompts)
        finally:
            gate.close()
        value = nudge.final / max(nudge.error, LEAST)
        # A forecast that makes the run overflow is as bad as any that was seen.
        values.append(value if math.isfinite(value) else max(values))
        if kept:
            kept.save_influence(values)
        progress(at)
    values[0] = max(values)
    return replace(profile, influence=np.array([values]))
