"""A list of ones and zeros: compute, or not.

References:
    | SmoothCache (Liu et al., 2024), https://arxiv.org/abs/2411.10510 (its schedules are such lists)
    | cache-dit's steps mask (2025), https://github.com/vipshop/cache-dit
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field

from ..step import Step
from .base import Policy

if TYPE_CHECKING:
    from ..profile import Profile

__all__ = ["Mask", "nearest"]


def nearest(length: int, steps: int) -> list[int]:
    """Returns which entry of a list of some length each of N steps takes: the ends stay ends."""
    if steps == 1:
        return [length - 1]
    return [round(i * (length - 1) / (steps - 1)) for i in range(steps)]


class Mask(Policy):
    """Computes where the list has a one; runs of another length take the nearest entries.

    A `plan` says the same by times, and so means the same on another grid.

    Arguments:
        compute_steps: By step, whether to compute.
    """

    type: Literal["mask"] = "mask"
    compute_steps: Annotated[tuple[bool, ...], Field(min_length=1, max_length=4096)]

    @classmethod
    def of_bins(cls, compute: Sequence[int], cache: Sequence[int], steps: int | None = None) -> Self:
        """Reads run lengths, as cache-dit and SGLang write them.

        Arguments:
            compute: How many steps in a row are computed, then, after a run of skipped ones, how many, ...
            cache: How many are skipped in between.
            steps: All steps; longer runs of bins are cut, shorter ones are errors.
        """
        runs = itertools.zip_longest(compute, cache, fillvalue=0)
        mask = [flag for on, off in runs for flag in [True] * on + [False] * off]
        if steps is not None and len(mask) < steps:
            raise ValueError(f"the bins give {len(mask)} steps, {steps} are needed")
        return cls(compute_steps=tuple(mask[:steps]))

    def init(self, times: tuple[float, ...]) -> list[bool]:
        return [self.compute_steps[i] for i in nearest(len(self.compute_steps), len(times))]

    def compute(self, state: list[bool], step: Step) -> bool:
        return state[step.index]

    @classmethod
    def fit(cls, profile: Profile, *, budget: float = 0.5, **knobs: Any) -> Self:
        """Returns the mask of the best plan."""
        from .plan import Plan

        steps = Plan.fit(profile, budget=budget, **knobs).steps(tuple(map(float, profile.times)))
        return cls(compute_steps=tuple(i in steps for i in range(profile.steps)))
