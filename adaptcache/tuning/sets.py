"""Three sets of prompts that have none in common: fit, select, report."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..profiling.cache import feed
from ..profiling.measure import Measurement
from ..profiling.reference import Trajectory
from ..runs import Prompt

__all__ = ["Sets", "head", "split"]


@dataclass(frozen=True)
class Sets:
    """The prompts of a search, numbered through: number k has the noise of seed + k.

    Arguments:
        fit: Weights are fitted on these.
        select: Schedules are chosen by these.
        report: Nothing is decided on these but what a certificate says.
    """

    fit: Sequence[Prompt]
    select: Sequence[Prompt]
    report: Sequence[Prompt]

    @property
    def calibration(self) -> list[Prompt]:
        """What weights are fitted on in the end, when the choice is made."""
        return [*self.fit, *self.select]


def split(prompts: Sequence[Prompt], held_out: Sequence[Prompt]) -> Sets:
    """Splits the calibration prompts in halves; held-out prompts are for the report alone.

    Raises:
        ValueError: There are too few, or one prompt is there twice.
    """
    if len(prompts) < 2:
        raise ValueError(
            f"{len(prompts)} calibration prompts cannot be split into some to fit on and some to select by: "
            "give 2 or more, 16 are good"
        )
    seen: dict[str, int] = {}
    for number, prompt in enumerate([*prompts, *held_out]):
        digest = hashlib.sha256()
        feed(digest, prompt)
        first = seen.setdefault(digest.hexdigest(), number)
        if first != number:
            raise ValueError(
                f"prompts {first} and {number} are the same ({str(prompt)[:60]!r}): what is fitted on must "
                "not be what is judged by; leave one out"
            )
    half = (len(prompts) + 1) // 2
    return Sets(prompts[:half], prompts[half:], held_out)


def head(measurement: Measurement, count: int, batch_size: int) -> Measurement:
    """Returns what was measured on the first prompts.

    Arguments:
        measurement: Of P prompts.
        count: How many to keep, from 1 to P.
        batch_size: How many prompts a run had.
    """
    profile = measurement.profile
    every = len(profile.gram)
    part = replace(
        profile,
        gram=profile.gram[:count],
        magnitude=profile.magnitude[:count],
        change_in=profile.change_in[:count],
        change_out=profile.change_out[:count],
        influence=profile.influence[:count],
    )
    runs: list[Trajectory] = []
    for first, run in zip(range(0, every, batch_size), measurement.runs, strict=True):
        samples = min(batch_size, every - first)
        if first < count:
            runs.append(run.head(min(samples, count - first), of=samples))
    return Measurement(part, runs)
