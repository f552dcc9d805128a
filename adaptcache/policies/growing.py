"""Intervals that grow during the run.

References:
    | Spectrum (2026), https://arxiv.org/abs/2603.01623
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field

from ..step import Step
from .base import Policy

if TYPE_CHECKING:
    from ..profile import Profile

__all__ = ["Growing"]


class Growing(Policy):
    """Computes steps `warm_up` + floor(`growth` r (r + 1) / 2), for r = 0, 1, 2, ...

    Arguments:
        growth: By how many steps each interval is longer than the one before; 0 computes all.
        warm_up: Steps at the start that are all computed.
    """

    type: Literal["growing"] = "growing"
    growth: Annotated[float, Field(ge=0)] = 0.75
    warm_up: Annotated[int, Field(ge=1)] = 5

    def init(self, times: tuple[float, ...]) -> set[int]:
        if self.growth == 0:
            return set(range(len(times)))
        # Long enough: at r = ceil(sqrt(2 N / growth)) the steps are past the end.
        rounds = math.ceil(math.sqrt(2 * len(times) / self.growth)) + 1
        later = {self.warm_up + math.floor(self.growth * r * (r + 1) / 2) for r in range(rounds)}
        return set(range(self.warm_up)) | later

    def compute(self, state: set[int], step: Step) -> bool:
        return step.index in state

    @classmethod
    def fit(cls, profile: Profile, *, budget: float = 0.5, **knobs: Any) -> Self:
        """Returns the growth that spends the budget; the warm-up is a tenth of the steps unless given."""
        from .replay import with_budget

        knobs.setdefault("warm_up", max(1, profile.steps // 10))
        return with_budget(lambda growth: cls(growth=growth, **knobs), profile, budget)
