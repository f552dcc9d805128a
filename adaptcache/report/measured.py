"""What was measured for a page or a picture: full run, schedules, and as many plain steps as each computes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from ..evaluation.evaluate import Row
from ..evaluation.generate import Generation
from ..evaluation.metrics import psnr


@dataclass(frozen=True)
class Measured:
    """Some prompts' outputs, beside the numbers of all prompts."""

    prompts: tuple[str, ...]  # the captions of what is shown
    # the full run, then each schedule and as many plain steps in turn, as `evaluate` returns them
    rows: tuple[Row, ...]
    images: tuple[tuple[np.ndarray, ...], ...]  # what was made for these prompts, a list a row
    held_out: int  # how many prompts the numbers are of
    rate: int | None = None  # samples a second, of sound

    @classmethod
    def of(
        cls, prompts: Sequence[object], rows: Sequence[Row], made: Sequence[Generation], *, most: int = 6,
        worst_of: int = 0, rate: int | None = None,
    ) -> Self:  # fmt: skip
        """Keeps the outputs of a few prompts: those that a schedule does worst on, the worst first.

        Arguments:
            prompts: All of them.
            rows: What `evaluate_schedules` returned.
            made: The same.
            most: Prompts to be kept.
            worst_of: The number of the schedule.
            rate: Samples a second, of sound.
        """
        full, cached = made[0].images, made[1 + 2 * worst_of].images
        kept = sorted(range(len(full)), key=lambda number: psnr(cached[number], full[number]))[:most]
        images = tuple(tuple(one.images[number] for number in kept) for one in made)
        return cls(tuple(str(prompts[number]) for number in kept), tuple(rows), images, len(full), rate)

    def only(self, number: int) -> Self:
        """Returns what was measured of one of the schedules."""
        kept = (0, 1 + 2 * number, 2 + 2 * number)
        return replace(self, rows=tuple(self.rows[k] for k in kept), images=tuple(self.images[k] for k in kept))

    def columns(self) -> dict[str, Sequence[np.ndarray]]:
        """Returns the outputs by headings for a picture: full run, as many plain steps, the schedule, in turn."""
        shown: dict[str, Sequence[np.ndarray]] = {f"full run, {self.rows[0].calls} steps": self.images[0]}
        for number in range(1, len(self.rows), 2):
            shown |= {self.rows[number + 1].name: self.images[number + 1]}
            shown |= {f"adaptcache, {self.rows[number].calls} calls": self.images[number]}
        return shown

    def decibels(self, row: int, prompt: int) -> float:
        """Returns how near the output of a row is to the full run's for one of the prompts."""
        return psnr(self.images[row][prompt], self.images[0][prompt])
