"""FoCa (Zheng et al., 2025), https://arxiv.org/abs/2508.16211: BDF2 predicts, Heun corrects."""

from typing import Annotated, Literal

import numpy as np
from pydantic import Field, PositiveInt

from ..fitting.kernel import Array
from ..step import Step
from .base import Forecast, Weights


class FoCa(Forecast):
    """Goes on from the last output by the mean of two slopes: at that output, and of the last two values.

    The "last two values" are outputs or forecasts, so the rule is recursive; as it is linear, the
    recursion is run on the weights. It starts anew at the oldest output kept. Both slopes are differences
    of outputs, not divided by the gap, as in cache-dit's "calibrator" of this name: exact on lines only where
    every step was computed just before. Skips beyond `horizon` steps are pulled back to the last output.
    """

    type: Literal["foca"] = "foca"
    history: Annotated[int, Field(ge=2, le=6)] = 4  # how many outputs the recursion goes back
    horizon: PositiveInt = 3  # steps after which the forecast is held back

    def weights(self, step: Step) -> Weights:
        known = step.past[: self.history]
        unit = np.eye(len(known))
        now: Array = unit[-1]
        before, anchor, older, last = now, now, now, known[-1]
        for index in range(known[-1] + 1, step.index + 1):
            if index in known:
                older, anchor, last = anchor, unit[known.index(index)], index
                before, now = now, anchor
            else:
                elapsed = index - last
                reach = min(elapsed, self.horizon)
                guess = anchor + reach / 2 * ((anchor - older) + (now - before))
                guess = anchor + (reach / elapsed) * (guess - anchor)
                before, now = now, guess
        return Weights(tuple(map(float, now)))
