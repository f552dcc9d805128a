"""What the parts of a schedule are made of: their base, and the types of their fields."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat

from ..files.limits import STEPS, checked_name, falling

__all__ = ["Count", "Line", "Name", "Part", "Summary", "Time", "Times"]

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
