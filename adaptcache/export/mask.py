"""Which steps are computed, for engines that reuse at the others."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Mask"]


@dataclass(frozen=True)
class Mask:
    """Which steps of a run are computed.

    Arguments:
        computed: 1 where the denoiser is called and 0 where it is not, by step.
        expected: The error of the final latents in decibels below their energy, which the kernel
            predicts if errors change nothing of what comes after; None without a kernel.
        lost: What of the schedule is not in the mask.
    """

    computed: tuple[int, ...]
    expected: float | None = None
    lost: tuple[str, ...] = ()

    @property
    def steps(self) -> int:
        """The number of steps N."""
        return len(self.computed)

    @property
    def calls(self) -> int:
        """How many of them are computed."""
        return sum(self.computed)

    @property
    def longest(self) -> int:
        """The most steps in a row that are skipped."""
        return max(map(len, "".join(map(str, self.computed)).split("1")))

    @property
    def strip(self) -> str:
        """The mask as a line of text, computed steps filled."""
        return "".join("█" if step else "·" for step in self.computed)
