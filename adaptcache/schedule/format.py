"""What the parts of a schedule are made of: their base, and the types of their fields."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from ..evaluation.certify import Certificate
from ..limits import KERNEL_STEPS, STEPS, checked_name, falling

Time = Annotated[float, Field(ge=0, le=1)]
Times = Annotated[
    tuple[Time, ...],
    Field(min_length=1, max_length=STEPS),
    AfterValidator(falling),
]
Name = Annotated[str, AfterValidator(checked_name)]
Line = Annotated[str, Field(max_length=4096)]  # as long as a path may be
Count = Annotated[int, Field(ge=0, le=2**53)]


def summarised(summary: dict[str, float]) -> dict[str, float]:
    """Returns the figures of a metric, if they are the two that are shown."""
    if summary.keys() != {"mean", "p05"}:
        raise ValueError("needs 'mean' and 'p05'")
    return summary


Summary = Annotated[dict[str, FiniteFloat], AfterValidator(summarised)]


class Part(BaseModel):
    """A part of a schedule: frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


# What a schedule was fitted on: the denoiser, the steps, and what a full run looked like there.


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


# How good a schedule is, as it was measured.


class Evidence(Part):
    """What was measured on prompts that were not used for fitting.

    Arguments:
        prompts: The name of the prompt set.
        n: How many of its held-out prompts.
        calls: Steps whose denoiser is called, of all steps.
        psnr: Decibels against the full run with the same noise: mean, and 5th percentile over prompts.
        ssim: The same for structural similarity, where it was measured.
        speed: All steps over computed steps.
        certificate: What was tested of a quality target.
        verdict: Why nothing is skipped, where that is the result.
    """

    prompts: Line
    n: Count
    calls: tuple[Count, Count]
    psnr: Summary
    ssim: Summary | None = None
    speed: FiniteFloat
    certificate: Certificate | None = None
    verdict: Line | None = None
