"""The artifact of a search: a schedule for each number of calls that is worth having, in one JSON file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, FiniteFloat, ValidationError, model_validator

from ..errors import ScheduleError
from ..files import dump_json, write_atomically
from ..limits import NODES, first_fault, parse_json, read_bytes
from ..schedule.format import Count, Line, Name, Part, Summary
from ..schedule.schedule import Schedule

__all__ = ["LARGEST", "POINTS", "Front", "Point", "is_front"]

FORMAT = 1
LARGEST = 2**23  # bytes; real fronts have about 200 thousand
POINTS = 256


class Point(Part):
    """A schedule of a front, and why it is there.

    Arguments:
        calls: Steps whose denoiser is called.
        select: Decibels on the select prompts, when it was fitted without them: mean and 5th percentile.
        gain: Mean decibels more there than what `calibrate` would return; 0 where that was taken.
        origin: How it was found.
        schedule: Fitted on all calibration prompts, with evidence from the held-out ones if there are any.
    """

    calls: Annotated[int, Field(ge=1, le=4096)]
    select: Summary
    gain: FiniteFloat = 0.0
    origin: Line = ""
    schedule: Schedule


class Front(Part):
    """What a search found.

    Arguments:
        name: What it is called.
        target: What was asked for.
        trials: How many trials were made.
        seed: Of the search.
        chosen: Which point meets the target, counted from the fewest calls.
        points: By rising calls; each better than those before it.

    Example:
        >>> front = Front.load("emoji-flux-28.front.json")
        >>> front.pick("10").schedule.save("ten-calls.json")
    """

    front: Literal[1] = 1
    name: Name
    target: Line
    trials: Count
    seed: Annotated[int, Field(ge=-(2**63), le=2**63)] = 0
    chosen: Annotated[int, Field(ge=0)] | None = None
    points: Annotated[tuple[Point, ...], Field(min_length=1, max_length=POINTS)]

    @model_validator(mode="after")
    def _points_rise(self) -> Self:
        calls = [point.calls for point in self.points]
        if calls != sorted(set(calls)):
            raise ValueError("the points must have rising numbers of calls")
        if self.chosen is not None and self.chosen >= len(calls):
            raise ValueError(f"point {self.chosen} was chosen, there are {len(calls)}")
        return self

    def pick(self, wish: str) -> Point:
        """Returns the best point with at most so many calls ("10"), or the fastest with a quality ("35dB").

        Raises:
            LookupError: There is none.
            ValueError: That is no wish.
        """
        found = re.fullmatch(r"\s*(\d{1,6}(?:\.\d{0,6})?)\s*(dB)?\s*", wish, re.I)
        if not found or (not found[2] and "." in found[1]):
            raise ValueError(f"cannot pick {wish[:40]!r}: give a number of calls (10) or a quality (35dB)")
        value, points = float(found[1]), list(self.points)
        if found[2]:
            good = [point for point in points if point.select["mean"] >= value]
            if not good:
                most = max(point.select["mean"] for point in points)
                raise LookupError(f"no point of {self.name} reaches {value:g} dB; the best has {most:.1f} dB")
            return good[0]
        few = [point for point in points if point.calls <= value]
        if not few:
            there = ", ".join(str(point.calls) for point in points)
            raise LookupError(f"no point of {self.name} makes {value:g} calls or fewer; there are: {there}")
        return few[-1]

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads a front; `ScheduleError` says what is wrong with it."""
        try:
            data = parse_json(read_bytes(path, LARGEST), POINTS * NODES)
        except OSError as error:
            raise ScheduleError(
                f"cannot read {path}: {error.strerror}; `adaptcache tune` writes one"
            ) from None
        except ValueError as error:
            raise ScheduleError(f"{path} is not JSON ({error}): is it a front?") from None
        if not is_front(data):
            raise ScheduleError(f"{path} is not a front: `adaptcache tune` writes one")
        if data["front"] != FORMAT:
            raise ScheduleError(
                f"{path} is a front of format {str(data['front'])[:40]}, this adaptcache reads {FORMAT}: "
                "update adaptcache, or tune again"
            )
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise ScheduleError(f"{path}: {first_fault(error, 'front')}") from None

    def save(self, path: str | Path) -> Path:
        """Writes the front, whole or not at all. The same front always gives the same bytes."""
        return write_atomically(path, dump_json(self.model_dump(by_alias=True, exclude_none=True)))


def is_front(data: object) -> bool:
    """Whether parsed JSON says that it is a front."""
    return isinstance(data, dict) and "front" in data and "points" in data
