"""Every n-th step, after a warm-up, as in DeepCache (Ma et al., 2024), https://arxiv.org/abs/2312.00858, and FORA
(Selvaraju et al., 2024), https://arxiv.org/abs/2407.01425.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import Field

from ..limits import STEPS
from ..profile import Profile
from .base import StaticPolicy
from .replay import find_nearest


class Uniform(StaticPolicy):
    """Computes every `interval`-th step, counted from the last one of the warm-up."""

    type: Literal["uniform"] = "uniform"
    interval: Annotated[int, Field(ge=1, le=STEPS)] = 2  # steps from one computed step to the next; 1 computes all
    warm_up: Annotated[int, Field(ge=1, le=STEPS)] = 1  # steps at the start that are all computed
    cool_down: Annotated[int, Field(ge=0, le=STEPS)] = 0  # steps at the end that are all computed
    # steps from the end of the warm-up to the next computed step, where it is not `interval`: 2 for diffusers'
    # `TaylorSeerCacheConfig`, which computes 0 1 2 4 7 10 for both being 3
    first_gap: Annotated[int, Field(ge=1, le=STEPS)] | None = None

    def steps(self, times: tuple[float, ...], gear: int = 0) -> list[int]:
        n = len(times)
        later = range(self.warm_up - 1 + (self.first_gap or self.interval), n, self.interval)
        ends = (*range(min(self.warm_up, n)), *range(max(n - self.cool_down, 0), n))
        return sorted({*ends, *later})

    @classmethod
    def fit(cls, profile: Profile, *, budget: float = 0.5, **params: Any) -> Self:
        """Returns the interval that comes nearest to the budget, or the warm-up if the interval is given."""
        free = "warm_up" if "interval" in params else "interval"
        made = [cls(**{free: value}, **params) for value in range(1, profile.steps + 1)]
        return find_nearest(made, profile, budget)
