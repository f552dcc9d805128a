"""Every n-th step, after a warm-up.

References:
    | DeepCache (Ma et al., 2024), https://arxiv.org/abs/2312.00858
    | FORA (Selvaraju et al., 2024), https://arxiv.org/abs/2407.01425
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field

from ..limits import STEPS
from ..step import Step
from .base import Policy

if TYPE_CHECKING:
    from ..profile import Profile

__all__ = ["Uniform"]


class Uniform(Policy):
    """Computes every `interval`-th step, counted from the last one of the warm-up.

    Arguments:
        interval: Steps from one computed step to the next; 1 computes all.
        warm_up: Steps at the start that are all computed.
        cool_down: Steps at the end that are all computed.
        first_gap: Steps from the end of the warm-up to the next computed step, where it is not `interval`:
            2 for diffusers' `TaylorSeerCacheConfig`, which computes 0 1 2 4 7 10 for both being 3.
    """

    type: Literal["uniform"] = "uniform"
    interval: Annotated[int, Field(ge=1, le=STEPS)] = 2
    warm_up: Annotated[int, Field(ge=1, le=STEPS)] = 1
    cool_down: Annotated[int, Field(ge=0, le=STEPS)] = 0
    first_gap: Annotated[int, Field(ge=1, le=STEPS)] | None = None

    def compute(self, state: None, step: Step) -> bool:
        if step.index < self.warm_up or step.index >= len(step.times) - self.cool_down:
            return True
        since = step.index - (self.warm_up - 1) - (self.first_gap or self.interval)
        return since >= 0 and since % self.interval == 0

    @classmethod
    def fit(cls, profile: Profile, *, budget: float = 0.5, **knobs: Any) -> Self:
        """Returns the interval that comes nearest to the budget, or the warm-up if the interval is given."""
        from .replay import calls_of

        free = "warm_up" if "interval" in knobs else "interval"
        made = [cls(**{free: value}, **knobs) for value in range(1, profile.steps + 1)]
        return min(made, key=lambda policy: abs(calls_of(policy, profile) - budget * profile.steps))
