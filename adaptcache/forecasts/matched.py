"""Weights fitted by calibration, one vector for each skipped step of a plan, and for computed ones after it.

`adaptcache.calibration.match` fits them so that the scheduler lands where the full run landed (trajectory
matching); `adaptcache.fitting.kernel` fits them to the outputs alone (open loop), as in

References:
    L2P (2026), https://arxiv.org/abs/2604.26365
"""

import functools
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, FiniteFloat, model_validator

from ..fitting.kernel import fit_open_loop_table
from ..limits import GEARS, STEPS, TRACKS
from ..profile import Profile
from ..step import Step
from .base import Forecast, Weights

Feature = Literal["x", "x0", "past_x", "past_c"]
LISTED: tuple[Feature, ...] = "past_x", "past_c"  # features with a weight for each output
Row = Annotated[tuple[FiniteFloat, ...], Field(max_length=20)]
Track = Annotated[tuple[Row, ...], Field(max_length=STEPS)]
Gear = Annotated[tuple[Track, ...], Field(min_length=1, max_length=TRACKS)]


class Matched(Forecast):
    """Looks the weights up.

    Arguments:
        history: How many computed outputs are used.
        features: What is used besides: "past_x" (the latents before the steps of these outputs; if it is
            named, then first), "past_c", "x" (before the step), "x0" (before the first step). Samplers that add noise
            need "past_x": an output holds noise that later latents do not, and these tell which part that is.
            "past_c" (the outputs with the prompt alone, before guidance) tells the branches apart, which age
            differently.
        table: By gear, track and step: the weights of the last computed outputs, newest first, then
            those of the features. At a computed step its own output is the newest; an empty row there leaves it
            as it is.
    """

    type: Literal["matched"] = "matched"
    history: Annotated[int, Field(ge=1, le=6)] = 4
    features: Annotated[tuple[Feature, ...], Field(max_length=4)] = ("x", "x0")
    table: Annotated[tuple[Gear, ...], Field(min_length=1, max_length=GEARS)]

    @model_validator(mode="after")
    def _rows_fit(self) -> Self:
        if len(set(self.features)) < len(self.features):
            raise ValueError(f"the features {', '.join(self.features)} name one twice")
        listed = [name for name in LISTED if name in self.features]
        if list(self.features[: len(listed)]) != listed:
            raise ValueError(f"the feature{'s' * (len(listed) > 1)} {' and '.join(listed)} has to be the first")
        each, rest = 1 + len(listed), len(self.features) - len(listed)  # weights of an output, and others
        for row in (row for gear in self.table for track in gear for row in track if row):
            if len(row) not in range(rest + each, rest + each * self.history + 1, each):
                raise ValueError(
                    f"a row has {len(row)} weights; it needs {each} for each of 1 to {self.history} outputs "
                    f"and {rest} for other features"
                )
        return self

    @property
    def keeps_latents(self) -> bool:  # type: ignore[override]
        return "past_x" in self.features

    @property
    def keeps_branches(self) -> bool:  # type: ignore[override]
        return "past_c" in self.features

    def row(self, step: Step) -> Row:
        """Returns the row of a step."""
        tracks = self.table[step.gear]
        return tracks[min(step.track, len(tracks) - 1)][step.index]

    def corrects(self, step: Step) -> bool:
        return bool(self.row(step))

    def weights(self, step: Step) -> Weights:
        return split_row(self.row(step), self.features)

    @classmethod
    def fit(cls, profile: Profile, plan: Sequence[int], history: int = 4, **params: Any) -> Self:
        """Returns the open-loop weights of one plan (L2P); trajectory matching needs the pipeline too."""
        table = fit_open_loop_table(profile.kernel, plan, history)
        return cls(history=history, features=(), table=((table,),), **params)


@functools.lru_cache(4096)  # a run looks its rows up again and again
def split_row(row: tuple[float, ...], features: tuple[Feature, ...]) -> Weights:
    """Returns a row of the table by name: outputs first, then the features in their order."""
    listed, others = ([name for name in features if (name in LISTED) == flag] for flag in (True, False))
    first, rest = row[: len(row) - len(others)], row[len(row) - len(others) :]
    size = len(first) // (1 + len(listed))
    parts = [tuple(first[start : start + size]) for start in range(0, len(first), size)]
    found = dict(zip(others, rest, strict=True))
    return Weights(parts[0], found.get("x", 0.0), found.get("x0", 0.0), **dict(zip(listed, parts[1:], strict=True)))
