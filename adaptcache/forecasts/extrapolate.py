"""The polynomial through the last computed outputs, continued: reuse, linear, quadratic, ..."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field

from ..clock import Step
from .base import Forecast, Weights

__all__ = ["Extrapolate"]


class Extrapolate(Forecast):
    """Continues the polynomial of degree `order` through the last `order + 1` outputs, in time.

    Order 0 reuses the last output. Early in a run the degree is what the history allows. TaylorSeer
    puts backward differences into a Taylor series instead: the same up to order 1, not exact above.

    Arguments:
        order: The degree of the polynomial.
    """

    type: Literal["extrapolate"] = "extrapolate"
    order: Annotated[int, Field(ge=0, le=5)] = 0

    @property
    def depth(self) -> int:
        return self.order + 1

    def weights(self, step: Step) -> Weights:
        # Lagrange's form: nothing to keep between steps, and steps may be unevenly spaced.
        known = [step.times[i] for i in step.past[: self.depth]]
        return Weights(tuple(math.prod((step.t - b) / (a - b) for b in known if b != a) for a in known))
