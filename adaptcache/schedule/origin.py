"""What a schedule was fitted on: the denoiser, the steps, and what a full run looked like there."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import AfterValidator, Field, FiniteFloat, model_validator

from ..files.limits import KERNEL_STEPS, STEPS, falling
from .fields import Line, Part, Time, Times

__all__ = ["Denoiser", "Grid", "Kernel"]


class Denoiser(Part):
    """What the schedule was fitted on.

    Arguments:
        class_name: The class of the denoiser; empty where nothing was fitted: any will do.
        config_hash: Digest of its configuration.
        weights_hash: Digest of a sample of its weights, LoRA included.
        checkpoint: Where the weights came from.
    """

    class_name: Line = Field("", alias="class")
    config_hash: Line = ""
    weights_hash: Line = ""
    checkpoint: Line = ""


class Grid(Part):
    """The steps it was fitted on: the scheduler's class, and N times in [0, 1], falling.

    Both are empty where nothing was fitted: the schedule runs on any grid.
    """

    scheduler: Line = ""
    times: Annotated[tuple[Time, ...], Field(max_length=STEPS), AfterValidator(falling)] = ()


class Kernel(Part):
    """Inner products of the guided outputs of a full run, from which it is planned anew on other grids.

    Arguments:
        times: N falling times.
        gram: Mean inner products with shape (N, N), after division by the mean norm.
        sensitivity: What an error at each step does to the end result, with shape (N,).
    """

    times: Times
    gram: Annotated[
        tuple[Annotated[tuple[FiniteFloat, ...], Field(max_length=KERNEL_STEPS)], ...],
        Field(max_length=KERNEL_STEPS),
    ]
    sensitivity: Annotated[tuple[Annotated[FiniteFloat, Field(ge=0)], ...], Field(max_length=KERNEL_STEPS)]

    @model_validator(mode="after")
    def _square(self) -> Self:
        n = len(self.times)
        if len(self.gram) != n or any(len(row) != n for row in self.gram) or len(self.sensitivity) != n:
            raise ValueError(f"the kernel of {n} times needs {n} x {n} products and {n} sensitivities")
        return self
