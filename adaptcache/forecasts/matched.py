"""Weights fitted by calibration, one vector for each skipped step of a plan.

`adaptcache.matching.match` fits them so that the scheduler lands where the full run landed (trajectory
matching); `adaptcache.fitting.kernel` fits them to the outputs alone (open loop), as in

References:
    L2P (2026), https://arxiv.org/abs/2604.26365
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, FiniteFloat, model_validator

from ..clock import Step
from ..files.limits import GEARS, STEPS, TRACKS
from ..fitting.kernel import open_loop_table
from .base import Forecast, Weights

if TYPE_CHECKING:
    from ..profiling.profile import Profile

__all__ = ["Matched"]

Row = Annotated[tuple[FiniteFloat, ...], Field(max_length=8)]
Track = Annotated[tuple[Row, ...], Field(max_length=STEPS)]
Gear = Annotated[tuple[Track, ...], Field(min_length=1, max_length=TRACKS)]


class Matched(Forecast):
    """Looks the weights up.

    Arguments:
        history: How many computed outputs are used.
        features: What is used besides: "x" (latents before the step), "x0" (before the first step).
        table: By gear, track and step: the weights of the last computed outputs, newest first, then
            those of the features. Empty where the step is computed.
    """

    type: Literal["matched"] = "matched"
    history: Annotated[int, Field(ge=1, le=6)] = 4
    features: Annotated[tuple[Literal["x", "x0"], ...], Field(max_length=2)] = ("x", "x0")
    table: Annotated[tuple[Gear, ...], Field(min_length=1, max_length=GEARS)]

    @model_validator(mode="after")
    def _rows_fit(self) -> Matched:
        if len(set(self.features)) < len(self.features):
            raise ValueError(f"the features {', '.join(self.features)} name one twice")
        for row in (row for gear in self.table for track in gear for row in track if row):
            if not len(self.features) < len(row) <= self.history + len(self.features):
                raise ValueError(
                    f"a row has {len(row)} weights; it needs 1 to {self.history} for outputs "
                    f"and {len(self.features)} for features"
                )
        return self

    @property
    def depth(self) -> int:
        return self.history

    def weights(self, step: Step) -> Weights:
        tracks = self.table[step.gear]
        row = tracks[min(step.track, len(tracks) - 1)][step.index]
        past = len(row) - len(self.features)
        rest = dict(zip(self.features, row[past:], strict=True))
        return Weights(row[:past], rest.get("x", 0.0), rest.get("x0", 0.0))

    @classmethod
    def fit(cls, profile: Profile, plan: Sequence[int], history: int = 4, **knobs: Any) -> Self:
        """Returns the open-loop weights of one plan (L2P); trajectory matching needs the pipeline too."""
        table = open_loop_table(profile.kernel, plan, history)
        return cls(history=history, features=(), table=((table,),), **knobs)
