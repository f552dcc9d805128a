"""ICC (Chen et al., 2025), https://arxiv.org/abs/2505.05829: the last output, and what its input has changed by."""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import FailFast, Field, FiniteFloat, model_validator
from torch import Tensor

from ..limits import FrozenModel
from ..profile import Profile
from ..step import Step
from .base import Forecast, Known, Weights

Row = Annotated[tuple[FiniteFloat, ...], Field(max_length=4096), FailFast()]


class Factors(FrozenModel):
    """A matrix of low rank r from D channels that enter a layer to E that leave it."""

    down: Annotated[tuple[Row, ...], Field(max_length=1024)] = ()  # r rows of D numbers
    up: Annotated[tuple[Row, ...], Field(max_length=1024)] = ()  # r rows of E numbers

    @model_validator(mode="after")
    def _ranks_agree(self) -> Self:
        if len(self.down) != len(self.up) or any(len({len(row) for row in rows}) > 1 for rows in (self.down, self.up)):
            raise ValueError("factors are r rows of one length and r rows of one length")
        return self


class Increment(Forecast):
    """Adds to the last output its change to first order: that of the input, through a matrix of low rank.

    Exact for a linear layer of that rank. What enters each layer is kept beside what leaves it.
    """

    keeps_latents: ClassVar[bool] = True

    type: Literal["increment"] = "increment"
    # by layer, in the order they are defined; one serves all, none is reuse
    layers: Annotated[tuple[Factors, ...], Field(max_length=4096)]

    @classmethod
    def fit(cls, profile: Profile, plan: Sequence[int], **params: Any) -> Self:
        """Returns reuse: a profile knows nothing of layers."""
        return cls(**{"layers": (), **params})

    def weights(self, step: Step) -> Weights:
        return Weights((1.0,))

    def combine(self, known: Known, step: Step) -> Tensor:
        last = known.past[0]
        factors = self.layers[step.instance if len(self.layers) > 1 else 0] if self.layers else Factors()
        if not factors.down or not known.past_x:
            return last
        moved = (known.x - known.past_x[0]).float()
        down, up = (torch.tensor(rows, device=last.device) for rows in (factors.down, factors.up))
        if moved.shape[-1] != down.shape[1] or last.shape != (*moved.shape[:-1], up.shape[1]):
            raise ValueError(
                f"factors are of {down.shape[1]} channels to {up.shape[1]}, the layer has {moved.shape[-1]} to "
                f"{last.shape[-1]}: they were fitted to another model"
            )
        return (last.float() + moved @ down.T @ up).to(last.dtype)
