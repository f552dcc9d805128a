"""Ratios of norms, walked until they promise too much error: a plan in disguise.

References:
    | MagCache (Ma et al., 2025), https://arxiv.org/abs/2506.09045
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field

from ..step import Step
from .base import Policy
from .mask import nearest

if TYPE_CHECKING:
    from ..profile import Profile

__all__ = ["Magnitude"]

Ratio = Annotated[float, Field(gt=0)]


class Magnitude(Policy):
    """Skips while the summed deviation from 1 of the product of ratios stays small.

    With P the product of the ratios since the last computed step, the sum of |1 - P| is compared with the
    threshold. It depends on the list alone, so every prompt gets the same plan.

    Arguments:
        ratios: Mean norm of the output over that of the step before, by step.
        threshold: The most the deviations may add up to.
        max_skip: The most steps skipped in a row.
        retention: The fraction of the steps at the start that are all computed.
        rounded: Whether the end of the retention is rounded (FLUX, diffusers) or cut (HunyuanVideo, Wan).
        strict: Whether the sum must stay below the threshold (Wan), or may reach it (FLUX, HunyuanVideo).
        always: Entries of the list that are always computed: 11 in the code for FLUX.
    """

    type: Literal["magnitude"] = "magnitude"
    ratios: Annotated[tuple[Ratio, ...], Field(min_length=1, max_length=4096)]
    threshold: Annotated[float, Field(ge=0)] = 0.06
    max_skip: Annotated[int, Field(ge=0)] = 3
    retention: Annotated[float, Field(ge=0, le=1)] = 0.2
    rounded: bool = True
    strict: bool = False
    always: tuple[int, ...] = ()

    def init(self, times: tuple[float, ...]) -> list[bool]:
        start = int(self.retention * len(times) + (0.5 if self.rounded else 0.0))
        product, summed, skipped = 1.0, 0.0, 0
        mask = []
        for index, entry in enumerate(nearest(len(self.ratios), len(times))):
            if index >= start:
                product *= self.ratios[entry]
                summed, skipped = summed + abs(1 - product), skipped + 1
            within = summed < self.threshold if self.strict else summed <= self.threshold
            skip = 0 < index >= start and within and skipped <= self.max_skip and entry not in self.always
            if not skip:
                product, summed, skipped = 1.0, 0.0, 0
            mask.append(not skip)
        return mask

    def compute(self, state: list[bool], step: Step) -> bool:
        return state[step.index]

    @classmethod
    def fit(cls, profile: Profile, *, budget: float = 0.5, **knobs: Any) -> Self:
        """Takes the ratios of the profile, and the threshold that spends the budget.

        `max_skip` is not limited unless given: a low limit makes every plan uniform, whatever the ratios.
        """
        from .replay import with_budget

        ratios = tuple(map(float, profile.magnitude.mean(axis=0)))
        knobs = {"retention": 0.1, "strict": True, "max_skip": profile.steps} | knobs
        return with_budget(lambda value: cls(ratios=ratios, threshold=value, **knobs), profile, budget)
