"""SenCache (2026), https://arxiv.org/abs/2602.24208: how much the output reacts to input and time, as measured."""

from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, NonNegativeFloat
from scipy.optimize import nnls
from torch import Tensor

from ..profile import Profile
from ..step import Step, relative_distance
from .threshold import Threshold, ThresholdState

Table = Annotated[tuple[NonNegativeFloat, ...], Field(min_length=1, max_length=4096)]
REACH = 8  # steps between the pairs the gains are fitted to


class Sensitivity(Threshold):
    """Computes where a(t) |x - x_c| / |x_c| + b(t) |t - t_c| reaches the threshold; c is the last computed.

    The paper takes a and b from finite differences of the denoiser; `fit` takes them from a profile, by
    least squares with non-negative gains, so that the score is the expected relative change of the output.
    """

    type: Literal["sensitivity"] = "sensitivity"
    times: Table  # N falling times
    to_input: Table  # a at these times, with shape (N,)
    to_time: Table  # b at these times, with shape (N,)

    def score(self, state: ThresholdState, step: Step, x: Tensor, before: Tensor) -> Tensor:
        assert state.anchor is not None
        rising = self.times[::-1]
        a = float(np.interp(step.t, rising, self.to_input[::-1]))
        b = float(np.interp(step.t, rising, self.to_time[::-1]))
        score: Tensor = a * relative_distance(x, state.anchor) + b * (step.times[step.past[0]] - step.t)
        return score

    @classmethod
    def fit(cls, profile: Profile, *, budget: float = 0.5, **params: Any) -> Self:
        n, times = profile.steps, profile.times
        rows = [fit_gains(profile.gram, times, i) for i in range(1, n)]
        to_input, to_time = zip(rows[0], *rows, strict=True)
        tables = {"times": tuple(map(float, times)), "to_input": to_input, "to_time": to_time}
        return super().fit(profile, budget=budget, **tables, **params)


def fit_gains(gram: np.ndarray, times: np.ndarray, step: int) -> tuple[float, float]:
    """Returns the two gains at a step, fitted to its change from each of the steps before.

    From inner products by prompt, outputs first, then latents, with shape (P, 2N, 2N).
    """
    n = len(times)
    before = np.arange(max(0, step - REACH), step)
    moves = []
    for first in (0, n):  # outputs, then latents
        a, b = first + step, first + before
        energy = gram[:, b, b]
        moves.append(np.sqrt(np.maximum(gram[:, a, a][:, None] + energy - 2 * gram[:, a, b], 0) / energy))
    gone = np.broadcast_to(times[before] - times[step], moves[0].shape)
    design = np.stack([moves[1].ravel(), gone.ravel()], axis=1)
    a, b = nnls(design, moves[0].ravel())[0]
    return float(a), float(b)
