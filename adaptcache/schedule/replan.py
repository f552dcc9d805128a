"""Plans a schedule anew for a grid it was not fitted on, from the kernel it carries."""

from ..errors import ScheduleError
from ..fitting.kernel import fit_open_loop_table, pair_errors
from ..fitting.plan import best_plan
from ..forecasts.matched import Matched
from ..policies.plan import Gear, Plan
from .rule import Rule
from .schedule import Schedule


def replan(schedule: Schedule, times: tuple[float, ...]) -> Rule:
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
        cure = "attach(pipe, speed=...), which makes one for any" if schedule.from_theory else "calibrate for these"
        raise ScheduleError(
            f"{schedule.name} carries no kernel and cannot be planned anew for {len(times)} steps; "
            f"use its {len(schedule.grid.times)} steps or {cure}"
        )
    gram, sensitivity = kernel.on_grid(times)
    errors = pair_errors(gram)
    gears: list[Gear] = []
    tables = []
    for gear in rule.policy.gears:
        steps = best_plan(errors, sensitivity, max(1, round(gear.budget * len(times))))
        gears.extend(Plan.of(steps, times).gears)
        tables.append((fit_open_loop_table(gram, steps, rule.forecast.history),))
    forecast = Matched(history=rule.forecast.history, features=(), table=tuple(tables))
    return Rule(site=rule.site, policy=Plan(gears=tuple(gears)), forecast=forecast)
