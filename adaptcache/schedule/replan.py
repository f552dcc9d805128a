"""Plans a schedule anew for a grid it was not fitted on, from the kernel it carries."""

from __future__ import annotations

import numpy as np

from ..errors import ScheduleError
from ..fitting.kernel import open_loop_table, pair_errors, resampled
from ..fitting.plan import best_plan
from ..forecasts.matched import Matched
from ..policies.plan import Gear, Plan
from .rule import Rule
from .schedule import Schedule

__all__ = ["replanned", "same_grid"]

NEAR = 1e-4  # times this close are the same: schedules keep 8 digits, schedulers compute in float32


def same_grid(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    """Whether two grids of times are the same."""
    return len(a) == len(b) and all(abs(s - t) < NEAR for s, t in zip(a, b, strict=True))


def replanned(schedule: Schedule, times: tuple[float, ...]) -> Rule:
    """Returns the rule for another grid with the same budgets.

    Rules that do not depend on the grid are returned as they are. Weights are fitted to the kernel
    alone (open loop), so they use outputs only, and errors of earlier steps are not undone.

    Raises:
        ScheduleError: The schedule carries no kernel.
    """
    rule, kernel = schedule.rules[0], schedule.kernel
    if not isinstance(rule.forecast, Matched) or not isinstance(rule.policy, Plan):
        return rule
    if kernel is None:
        raise ScheduleError(
            f"{schedule.name} carries no kernel and cannot be planned anew for {len(times)} steps; "
            f"use its {len(schedule.grid.times)} steps or calibrate for these"
        )
    gram = resampled(np.array(kernel.gram), np.array(kernel.times), np.array(times))
    ascending = np.array(kernel.times)[::-1]
    sensitivity = np.interp(np.array(times), ascending, np.array(kernel.sensitivity)[::-1])
    errors = pair_errors(gram)
    gears: list[Gear] = []
    tables = []
    for gear in rule.policy.gears:
        steps = best_plan(errors, sensitivity, max(1, round(gear.budget * len(times))))
        gears.extend(Plan.of(steps, times).gears)
        tables.append((open_loop_table(gram, steps, rule.forecast.history),))
    forecast = Matched(history=rule.forecast.history, features=(), table=tuple(tables))
    return Rule(site=rule.site, policy=Plan(gears=tuple(gears)), forecast=forecast)
