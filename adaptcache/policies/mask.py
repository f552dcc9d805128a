"""A list of ones and zeros, as SmoothCache (Liu et al., 2024), https://arxiv.org/abs/2411.10510, and cache-dit
(https://github.com/vipshop/cache-dit) keep their plans.
"""

import itertools
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field

from ..profile import Profile
from ..step import nearest_entries
from .base import StaticPolicy
from .plan import Plan


class Mask(StaticPolicy):
    """Computes where the list has a one; runs of another length take the nearest entries.

    A `plan` says the same by times, and so means the same on another grid.
    """

    type: Literal["mask"] = "mask"
    compute_steps: Annotated[tuple[bool, ...], Field(min_length=1, max_length=4096)]  # by step, whether to compute

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

    def steps(self, times: tuple[float, ...], gear: int = 0) -> list[int]:
        entries = nearest_entries(len(self.compute_steps), len(times))
        return [i for i, entry in enumerate(entries) if self.compute_steps[entry]]

    @classmethod
    def fit(cls, profile: Profile, *, budget: float = 0.5, **params: Any) -> Self:
        """Returns the mask of the best plan."""
        steps = Plan.fit(profile, budget=budget, **params).steps(tuple(map(float, profile.times)))
        return cls(compute_steps=tuple(i in steps for i in range(profile.steps)))
