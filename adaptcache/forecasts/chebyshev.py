"""Spectrum (2026), https://arxiv.org/abs/2603.01623: Chebyshev polynomials, fitted by ridge regression."""

from typing import Annotated, Literal

import numpy as np
from pydantic import Field, NonNegativeFloat

from ..step import Step
from .base import Forecast, Weights


class Chebyshev(Forecast):
    """Fits a Chebyshev series over the whole run to the outputs kept, and evaluates it at this step.

    The ridge pulls every coefficient to zero, the constant too: it is exact on nothing unless `ridge` is 0,
    when it is exact up to `order` as soon as there are more outputs than that.
    """

    type: Literal["chebyshev"] = "chebyshev"
    order: Annotated[int, Field(ge=0, le=8)] = 4  # the degree of the series
    ridge: NonNegativeFloat = 0.1  # strength of the pull to zero
    # how many outputs are kept; the paper keeps all, this much memory is ours to limit
    history: Annotated[int, Field(ge=1, le=64)] = 16

    def weights(self, step: Step) -> Weights:
        known = np.array(step.past[: self.history], float)
        last = max(len(step.times) - 1, 1)
        basis = np.polynomial.chebyshev.chebvander(2 * known / last - 1, self.order)
        here = np.polynomial.chebyshev.chebvander(np.array([2 * step.index / last - 1]), self.order)[0]
        # The smallest solution where the outputs are fewer than the coefficients.
        system = basis.T @ basis + self.ridge * np.eye(self.order + 1)
        weights = here @ np.linalg.pinv(system) @ basis.T
        return Weights(tuple(map(float, weights)))
