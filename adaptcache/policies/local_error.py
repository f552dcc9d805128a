"""SmoothCache (Liu et al., 2024), https://arxiv.org/abs/2411.10510, and ERTACache (Peng et al., 2025),
https://arxiv.org/abs/2508.21091: measured errors of reuse, step by step; skip as far as they allow.
"""

from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import FailFast, Field, NonNegativeFloat, NonNegativeInt

from ..profile import Profile
from ..step import nearest_entries
from .base import StaticPolicy

# One bad entry is reported, not a million.
Errors = Annotated[tuple[NonNegativeFloat, ...], Field(min_length=1), FailFast()]


class LocalError(StaticPolicy):
    """Skips from each computed step the largest number of steps whose error stays below the threshold.

    How SmoothCache decides for a type of layers; here for the whole step. ERTACache's walk (skip until
    the error is too large) is the same with `first` set. It sees one skip at a time, and not what its
    error does to the end result: `plan` does.
    """

    type: Literal["local-error"] = "local-error"
    # `errors[i][k]`: relative error of the output of step i at step i + 1 + k
    errors: Annotated[tuple[Errors, ...], Field(min_length=1, max_length=1024), FailFast()]
    threshold: NonNegativeFloat  # the largest error that is skipped
    first: bool = True  # whether the first error above the threshold ends the skip, or the last one below it
    cool_down: NonNegativeInt = 0  # steps at the end that are all computed: 1 in SmoothCache

    def steps(self, times: tuple[float, ...], gear: int = 0) -> list[int]:
        entries = nearest_entries(len(self.errors), len(times))
        stretch = (len(self.errors) - 1) / max(len(times) - 1, 1)
        steps, index = set(range(max(len(times) - self.cool_down, 0), len(times))), 0
        while index < len(times):
            steps.add(index)
            index += 1 + self._count_skips(self.errors[entries[index]], stretch, len(times) - 1 - index)
        return sorted(steps)

    def _count_skips(self, errors: tuple[float, ...], stretch: float, left: int) -> int:
        """Returns how many steps may be skipped after a computed one with these errors."""
        skips = 0
        for k in range(1, left + 1):
            entry = max(round(k * stretch), 1) - 1  # a longer run has more steps in the same time
            if entry >= len(errors):
                break
            if errors[entry] < self.threshold:
                skips = k
            elif self.first:
                break
        return skips

    @classmethod
    def fit(cls, profile: Profile, *, budget: float = 0.5, longest: int | None = None, **params: Any) -> Self:
        """Takes the errors from the kernel (relative L2; the papers take L1), and the threshold by budget.

        At most `longest` steps are skipped in a row; SmoothCache measures 3.
        """
        gram, n = profile.kernel, profile.steps
        energy = np.diagonal(gram)
        relative = np.sqrt(np.maximum(energy[:, None] + energy[None] - 2 * gram, 0.0) / energy[None])
        reach = longest or n - 1
        rows = (tuple(map(float, relative[i, i + 1 : i + 1 + reach])) or (np.inf,) for i in range(n))
        errors = tuple(tuple(min(value, 1e9) for value in row) for row in rows)
        return super().fit(profile, budget=budget, errors=errors, **params)
