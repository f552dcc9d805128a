"""AB-Cache (Yu et al., 2025), https://arxiv.org/abs/2504.10540: the mean of the extrapolating polynomial."""

from typing import Annotated, Literal

from pydantic import Field

from ..fitting.differences import mean_weights
from ..step import Step
from .base import Forecast, Weights


class AdamsBashforth(Forecast):
    """Takes the mean, from the last computed step to this one, of the polynomial through the last outputs.

    One step after evenly spaced outputs these are the textbook's weights: 3/2, -1/2 for order 2; 23/12,
    -16/12, 5/12 for order 3. Uneven steps and longer skips are integrated as they are. A mean over
    the past lags behind: it is exact on constants only, and on a line gives the value half way.
    """

    type: Literal["adams-bashforth"] = "adams-bashforth"
    order: Annotated[int, Field(ge=1, le=5)] = 2  # how many outputs are used

    @property
    def depth(self) -> int:
        return self.order

    def weights(self, step: Step) -> Weights:
        known = list(map(float, step.past[: self.depth]))
        return Weights(mean_weights(known, known[0], float(step.index)))
