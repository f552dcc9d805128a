"""A fixed plan: compute at given times, found by dynamic programming on the kernel of a profile, as in LeMiCa
(Gao et al., 2025), https://arxiv.org/abs/2511.00090, and DPCache (2026), https://arxiv.org/abs/2602.22654.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import AfterValidator, Field, model_validator

from ..fitting.instances import interpolated_plan, turning_plan
from ..fitting.kernel import Array, pair_errors
from ..fitting.plan import best_plan, minmax_plan, reuse_costs
from ..limits import GEARS, STEPS, FrozenModel, check_falling
from ..profile import Profile
from .base import StaticPolicy
from .signals import Row, SignalSpec, fit_band

Time = Annotated[float, Field(ge=0, le=1)]
SignalSpecs = Annotated[
    tuple[Annotated[tuple[SignalSpec, ...], Field(max_length=STEPS)], ...], Field(min_length=1, max_length=GEARS)
]


class Gear(FrozenModel):
    """One plan of a schedule."""

    budget: Annotated[float, Field(gt=0, le=1)]  # the fraction of the steps that are computed
    # the times of the computed steps, falling
    compute: Annotated[tuple[Time, ...], Field(min_length=1, max_length=STEPS), AfterValidator(check_falling)]


class Plan(StaticPolicy):
    """Computes at the step nearest to each time of the gear.

    Times and not step numbers, so that a plan made for 50 steps also means something on 28.
    """

    type: Literal["plan"] = "plan"
    # plans with rising budgets; the runtime decides which one is followed
    gears: Annotated[tuple[Gear, ...], Field(min_length=1, max_length=GEARS)]
    # what a guard looks at, by gear and computed step after the first; None where it has nothing
    signal_specs: SignalSpecs | None = Field(None, alias="watch")

    @model_validator(mode="after")
    def _specs_fit_the_gears(self) -> Self:
        if self.signal_specs is not None:
            steps = [len(gear.compute) for gear in self.gears]
            if len(self.signal_specs) != len(steps) or any(
                len(specs) >= most for specs, most in zip(self.signal_specs, steps, strict=True)
            ):
                raise ValueError("there is at most one look for each computed step after a gear's first")
            if any(spec.depth > k + 2 for specs in self.signal_specs for k, spec in enumerate(specs)):
                raise ValueError("a look weighs more outputs than are computed by then")
        return self

    @classmethod
    def of(cls, steps: Sequence[int], times: tuple[float, ...]) -> Self:
        """Creates the plan that computes the steps with these numbers of a grid of N times."""
        return cls(gears=(Gear(budget=len(steps) / len(times), compute=tuple(times[i] for i in steps)),))

    def steps(self, times: tuple[float, ...], gear: int = 0) -> list[int]:
        wanted = np.array(self.gears[gear].compute)
        return [int(i) for i in np.unique(np.abs(wanted[:, None] - np.array(times)).argmin(axis=1))]

    def with_signals(self, seen: Sequence[tuple[Row, Array]]) -> Self:
        """Returns this plan of one gear with what a guard needs.

        By computed step after the first: how the innovation is computed, and that of each prompt in runs by this plan.
        """
        specs = tuple(SignalSpec(rows=(row,), band=fit_band(values)) for row, values in seen)
        return self.model_copy(update={"signal_specs": (specs,)})

    @classmethod
    def fit(
        cls,
        profile: Profile,
        *,
        budget: float = 0.5,
        planner: Literal["sum", "minmax", "turning"] = "sum",
        weighted: bool = True,
        between: tuple[float, float] | None = None,
        **params: Any,
    ) -> Self:
        """Returns the best plan for a budget.

        Arguments:
            planner: "sum" has the smallest sum of errors, forecast from the last two computed steps;
                "minmax" the smallest worst skip, reused from the last one, as LeMiCa; "turning" computes at
                equal shares of how far the trajectory turns.
            weighted: Whether errors count by what they do to the end result (the profile's sensitivity).
            between: Budgets of a safe and of a fast plan; the plan is interpolated between their quantiles, as
                OTCache does (https://arxiv.org/abs/2606.31026), where the budget lies between them.
        """
        calls = max(1, round(budget * profile.steps))
        errors = pair_errors(profile.kernel)
        sensitivity = profile.sensitivity if weighted else np.ones(profile.steps)
        if between and between[1] < budget < between[0]:
            safe, fast = (best_plan(errors, sensitivity, max(1, round(b * profile.steps))) for b in between)
            steps = interpolated_plan(safe, fast, calls)
        elif planner == "turning":
            steps = turning_plan(profile.kernel, calls)
        elif planner == "sum":
            steps = best_plan(errors, sensitivity, calls)
        else:
            steps = minmax_plan(reuse_costs(errors, sensitivity), calls)
        return cls.of(steps, tuple(map(float, profile.times)))
