"""Spectrum's plan (2026), https://arxiv.org/abs/2603.01623: intervals that grow during the run."""

import itertools
import math
from typing import Any, ClassVar, Literal, Self

from pydantic import NonNegativeFloat, PositiveInt

from ..profile import Profile
from .base import StaticPolicy


class Growing(StaticPolicy):
    """Computes steps `warm_up` + floor(`growth` r (r + 1) / 2), for r = 0, 1, 2, ..."""

    fitted: ClassVar[str] = "growth"

    type: Literal["growing"] = "growing"
    growth: NonNegativeFloat = 0.75  # by how many steps each interval is longer than the one before; 0 computes all
    warm_up: PositiveInt = 5  # steps at the start that are all computed

    def steps(self, times: tuple[float, ...], gear: int = 0) -> list[int]:
        n = len(times)
        if 2 * n * self.growth <= 1:  # every interval within the run is shorter than a step
            return list(range(n))
        every = (self.warm_up + math.floor(self.growth * r * (r + 1) / 2) for r in itertools.count())
        later = itertools.takewhile(lambda step: step < n, every)
        return sorted({*range(min(self.warm_up, n)), *later})

    @classmethod
    def fit(cls, profile: Profile, *, budget: float = 0.5, **params: Any) -> Self:
        """Returns the growth that spends the budget; the warm-up is a tenth of the steps unless given."""
        params.setdefault("warm_up", max(1, profile.steps // 10))
        return super().fit(profile, budget=budget, **params)
