"""MagCache (Ma et al., 2025), https://arxiv.org/abs/2506.09045: ratios of norms, until they err too much."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat

from ..profile import Profile
from ..step import nearest_entries
from .base import StaticPolicy


class Magnitude(StaticPolicy):
    """Skips while the summed deviation from 1 of the product of ratios stays small.

    With P the product of the ratios since the last computed step, the sum of |1 - P| is compared with the
    threshold. It depends on the list alone, so every prompt gets the same plan.
    """

    type: Literal["magnitude"] = "magnitude"
    # mean norm of the output over that of the step before, by step
    ratios: Annotated[tuple[PositiveFloat, ...], Field(min_length=1, max_length=4096)]
    threshold: NonNegativeFloat = 0.06  # the most the deviations may add up to
    max_skip: NonNegativeInt = 3  # the most steps skipped in a row
    # the fraction of the steps at the start that are all computed
    retention: Annotated[float, Field(ge=0, le=1)] = 0.2
    rounded: bool = True  # whether the end of the retention is rounded (FLUX, diffusers) or cut (HunyuanVideo, Wan)
    strict: bool = False  # whether the sum must stay below the threshold (Wan), or may reach it (FLUX, HunyuanVideo)
    always: tuple[int, ...] = ()  # entries of the list that are always computed: 11 in the code for FLUX

    def steps(self, times: tuple[float, ...], gear: int = 0) -> list[int]:
        start = max(int(self.retention * len(times) + (0.5 if self.rounded else 0.0)), 1)
        product, summed, computed = 1.0, 0.0, list(range(min(start, len(times))))
        for index, entry in list(enumerate(nearest_entries(len(self.ratios), len(times))))[start:]:
            product *= self.ratios[entry]
            summed += abs(1 - product)
            within = summed < self.threshold if self.strict else summed <= self.threshold
            if not within or index - computed[-1] > self.max_skip or entry in self.always:
                product, summed = 1.0, 0.0
                computed.append(index)
        return computed

    @classmethod
    def fit(cls, profile: Profile, *, budget: float = 0.5, **params: Any) -> Self:
        """Takes the ratios of the profile, and the threshold that spends the budget.

        `max_skip` is not limited unless given: a low limit makes every plan uniform, whatever the ratios.
        """
        ratios = tuple(map(float, profile.magnitude.mean(axis=0)))
        params = {"ratios": ratios, "retention": 0.1, "strict": True, "max_skip": profile.steps} | params
        return super().fit(profile, budget=budget, **params)
