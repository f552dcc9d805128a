"""HiCache (Feng et al., 2025), https://arxiv.org/abs/2508.16984: differences in a Hermite series."""

import math
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from ..fitting.differences import backward
from ..step import Step
from .base import Forecast, Weights


class Hermite(Forecast):
    """Sums the differences times s^i H_i(s y) / i!, with y the steps since the last over the last gap.

    H are the physicists' Hermite polynomials: 1, 2z, 4z^2 - 2, ... So order 1 is linear extrapolation
    with its slope times 2 s^2 (0.98 at s = 0.7, 0.5 at s = 0.5): a damped Taylor series. It is exact on
    constants only, whatever the order; on a line of slope a it is off by (2 s^2 - 1) a k.
    """

    type: Literal["hermite"] = "hermite"
    order: Annotated[int, Field(ge=0, le=5)] = 2  # the number of differences used
    scale: Annotated[float, Field(gt=0, le=1)] = 0.5  # s, which damps; published values lie in 0.5 to 0.75

    def weights(self, step: Step) -> Weights:
        known = list(map(float, step.past[: self.depth]))
        rows = backward(known, self.order)
        gap = known[0] - known[1] if len(known) > 1 else 1.0
        z = self.scale * (step.index - known[0]) / gap
        total = np.zeros(len(known))
        for i, row in enumerate(rows):
            value = np.polynomial.hermite.hermval(z, [0.0] * i + [1.0])
            total += (self.scale * gap) ** i * value / math.factorial(i) * row
        return Weights(tuple(map(float, total)))
