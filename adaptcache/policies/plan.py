"""A fixed plan: compute at given times.

The times come from dynamic programming on the kernel of a profile (`adaptcache.fitting.path`), as in

References:
    | LeMiCa (Gao et al., 2025), https://arxiv.org/abs/2511.00090
    | DPCache (2026), https://arxiv.org/abs/2602.22654
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from ..fitting.kernel import pair_errors
from ..fitting.plan import best_plan, minmax_plan, reuse_costs
from ..limits import GEARS, STEPS, falling
from ..step import Step
from .base import Policy
from .signals import Look

if TYPE_CHECKING:
    from ..profile import Profile

__all__ = ["Gear", "Plan", "Watch"]

Time = Annotated[float, Field(ge=0, le=1)]


Watch = Annotated[
    tuple[Annotated[tuple[Look, ...], Field(max_length=STEPS)], ...], Field(min_length=1, max_length=GEARS)
]


class Gear(BaseModel):
    """One plan of a schedule.

    Arguments:
        budget: The fraction of the steps that are computed.
        compute: The times of the computed steps, falling.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    budget: Annotated[float, Field(gt=0, le=1)]
    compute: Annotated[tuple[Time, ...], Field(min_length=1, max_length=STEPS), AfterValidator(falling)]


class Plan(Policy):
    """Computes at the step nearest to each time of the gear.

    Times and not step numbers, so that a plan made for 50 steps also means something on 28.

    Arguments:
        gears: Plans with rising budgets; the runtime is told which one to follow.
        watch: What a guard looks at, by gear and computed step after the first; None where it has nothing.
    """

    type: Literal["plan"] = "plan"
    gears: Annotated[tuple[Gear, ...], Field(min_length=1, max_length=GEARS)]
    watch: Watch | None = None

    @model_validator(mode="after")
    def _watches_its_gears(self) -> Self:
        if self.watch is not None:
            steps = [len(gear.compute) for gear in self.gears]
            if len(self.watch) != len(steps) or any(
                len(looks) >= most for looks, most in zip(self.watch, steps, strict=True)
            ):
                raise ValueError("there is at most one look for each computed step after a gear's first")
            if any(look.depth > k + 2 for looks in self.watch for k, look in enumerate(looks)):
                raise ValueError("a look weighs more outputs than are computed by then")
        return self

    @classmethod
    def of(cls, steps: Sequence[int], times: tuple[float, ...]) -> Self:
        """Creates the plan that computes the steps with these numbers of a grid of N times."""
        return cls(gears=(Gear(budget=len(steps) / len(times), compute=tuple(times[i] for i in steps)),))

    def steps(self, times: tuple[float, ...], gear: int = 0) -> list[int]:
        """Returns the numbers of the steps a gear computes on a grid of N times, rising."""
        wanted = np.array(self.gears[gear].compute)
        return [int(i) for i in np.unique(np.abs(wanted[:, None] - np.array(times)).argmin(axis=1))]

    def init(self, times: tuple[float, ...]) -> list[list[int]]:
        return [self.steps(times, gear) for gear in range(len(self.gears))]

    def compute(self, state: list[list[int]], step: Step) -> bool:
        return step.index in state[step.gear]

    @classmethod
    def fit(
        cls,
        profile: Profile,
        *,
        budget: float = 0.5,
        planner: Literal["sum", "minmax"] = "sum",
        weighted: bool = True,
        **knobs: Any,
    ) -> Self:
        """Returns the best plan for a budget.

        Arguments:
            planner: "sum" has the smallest sum of errors, forecast from the last two computed steps;
                "minmax" the smallest worst skip, reused from the last one, as LeMiCa.
            weighted: Whether errors count by what they do to the end result (the profile's influence).
        """
        calls = max(1, round(budget * profile.steps))
        errors = pair_errors(profile.kernel)
        sensitivity = profile.sensitivity if weighted else np.ones(profile.steps)
        if planner == "sum":
            steps = best_plan(errors, sensitivity, calls)
        else:
            steps = minmax_plan(reuse_costs(errors, sensitivity), calls)
        return cls.of(steps, tuple(map(float, profile.times)))
