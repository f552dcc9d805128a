"""The polynomial through the last computed outputs, continued in time: reuse, linear, quadratic, ..."""

from typing import Annotated, Literal

from pydantic import Field

from ..fitting.differences import lagrange
from ..step import Step
from .base import Forecast, Weights


class Extrapolate(Forecast):
    """Continues the polynomial of degree `order` through the last `order + 1` outputs, in time.

    Order 0 reuses the last output. Early in a run the degree is what the history allows. TaylorSeer
    puts backward differences into a Taylor series instead: the same up to order 1, not exact above.
    """

    type: Literal["extrapolate"] = "extrapolate"
    order: Annotated[int, Field(ge=0, le=5)] = 0  # the degree of the polynomial

    def weights(self, step: Step) -> Weights:
        return Weights(lagrange([step.times[i] for i in step.past[: self.depth]], step.t))
