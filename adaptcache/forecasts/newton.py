"""The polynomial through the last computed outputs, continued in steps and not in time.

Newton's backward form and Lagrange's are the same polynomial. Published methods count steps; where the
grid is uneven (a shifted schedule), the same degree in time (`extrapolate`) is another forecast.
"""

from typing import Annotated, Literal

from pydantic import Field

from ..fitting.differences import lagrange
from ..step import Step
from .base import Forecast, Weights


class Newton(Forecast):
    """Continues the polynomial of degree `order` through the last outputs, over the step number.

    Exact on polynomials of that degree, where TaylorSeer is not above degree 1. Early in a run the
    degree is what the history allows.
    """

    type: Literal["newton"] = "newton"
    order: Annotated[int, Field(ge=0, le=5)] = 2  # the degree of the polynomial

    def weights(self, step: Step) -> Weights:
        return Weights(lagrange(list(map(float, step.past[: self.depth])), step.index))
