"""MagCache (Ma et al., 2025), https://arxiv.org/abs/2506.09045: reuse, scaled as the output grows or shrinks."""

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveFloat

from ..profile import Profile
from ..step import Step
from .base import Forecast, Weights


class Scaled(Forecast):
    """Multiplies the last output by the ratios of norms of all steps since.

    MagCache uses these ratios to decide only; here the forecast has the norm they predict.
    """

    type: Literal["scaled"] = "scaled"
    # norm of the output over that of the step before, by step; other numbers of steps take the nearest, to the power
    # that keeps the growth over the whole run
    ratios: Annotated[tuple[PositiveFloat, ...], Field(min_length=1, max_length=4096)] = (1.0,)

    def weights(self, step: Step) -> Weights:
        n, m = len(step.times), len(self.ratios)
        stretch = (m - 1) / max(n - 1, 1) if m > 1 else 0.0
        grown = [self.ratios[round(i * stretch)] for i in range(step.past[0] + 1, step.index + 1)]
        return Weights((math.prod(grown) ** (stretch if m != n else 1.0),))

    @classmethod
    def fit(cls, profile: Profile, plan: Sequence[int], **params: Any) -> Self:
        return cls(ratios=tuple(map(float, profile.magnitude.mean(axis=0))), **params)
