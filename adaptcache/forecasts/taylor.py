"""TaylorSeer (Liu et al., 2025), https://arxiv.org/abs/2503.06923: differences in a Taylor series, as published."""

import math
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from ..fitting.differences import backward
from ..step import Step
from .base import Forecast, Weights


class Taylor(Forecast):
    """Sums D_i k^i / i! over the orders, with k the steps since the last computed one.

    D_i is the i-th backward difference, taken for the i-th derivative at the last computed step, where
    it belongs half of the gap before. So order 1 is exact on lines, but order 2 is not exact on parabolas:
    on a k^2 with gap g it falls short by a k g. `newton` of the same order is exact.

    The numbers are those of `TaylorSeerCacheConfig` in diffusers. When it computes is another matter:
    after `disable_cache_before_step` = b full steps it forecasts step b too and computes b + 1, then
    every `cache_interval`-th (`uniform` with `first_gap` = 2); the paper computes b - 1 + interval.
    """

    type: Literal["taylor"] = "taylor"
    order: Annotated[int, Field(ge=0, le=5)] = 1  # the number of differences used

    def weights(self, step: Step) -> Weights:
        known = list(map(float, step.past[: self.depth]))
        rows = backward(known, self.order)
        elapsed = step.index - known[0]
        series = np.array([elapsed**i / math.factorial(i) for i in range(len(rows))])
        return Weights(tuple(map(float, series @ rows)))
