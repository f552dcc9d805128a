"""TeaCache (Liu et al., 2024), https://arxiv.org/abs/2411.19108: a polynomial of the input's change."""

from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, FiniteFloat, NonNegativeInt
from torch import Tensor

from ..fitting.polynomial import cross_validate, fit_rising
from ..profile import Profile
from ..step import Step, relative_change
from .threshold import Threshold, ThresholdState


class Polynomial(Threshold):
    """Adds up p(relative L1 change of the signal from step to step); computes where the sum is due.

    p predicts the output's change. Published polynomials are not monotone and partly negative, and are
    extrapolated without a warning (`adaptcache lint`); `fit` makes rising ones, clamped to what was measured.
    """

    accumulates: ClassVar[bool] = True

    type: Literal["polynomial"] = "polynomial"
    coefficients: Annotated[tuple[FiniteFloat, ...], Field(min_length=1, max_length=16)]  # of p, highest power first
    cool_down: NonNegativeInt = 1
    # The range p was fitted on; changes outside count as its ends. None extrapolates, as published.
    clamp: tuple[FiniteFloat, FiniteFloat] | None = None
    r2: FiniteFloat | None = None  # how well p predicts the output's change on prompts it was not fitted to
    rank: FiniteFloat | None = None  # rank correlation of the same

    def score(self, state: ThresholdState, step: Step, x: Tensor, before: Tensor) -> Tensor:
        change = relative_change(x, before)
        return self.predict(change.clamp(*self.clamp) if self.clamp else change)

    def predict(self, change: Tensor) -> Tensor:
        """Returns p, by Horner's rule, with the shape of its argument."""
        total = torch.zeros_like(change)
        for coefficient in self.coefficients:
            total = total * change + coefficient
        return total

    @classmethod
    def fit(cls, profile: Profile, *, budget: float = 0.5, degree: int = 4, **params: Any) -> Self:
        """Fits p to the changes of latents and outputs, and the threshold to the budget."""
        x, y = profile.change_in[:, 1:], profile.change_out[:, 1:]
        rising = fit_rising(x.ravel(), y.ravel(), degree)
        r2, rank = cross_validate(x, y, degree)
        fitted = {"coefficients": rising.coefficients, "clamp": (rising.low, rising.high)}
        if budget == 1:
            params["cool_down"] = profile.steps
        return super().fit(profile, budget=budget, r2=r2, rank=rank, **fitted, **params)
