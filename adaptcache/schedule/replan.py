"""Plans a schedule anew for a grid it was not fitted on, from the kernel it carries, with weights from theory."""

from ..errors import ScheduleError
from ..fitting.kernel import fit_open_loop_table, pair_errors
from ..fitting.plan import best_plan
from ..forecasts.matched import Matched
from ..policies.plan import Gear, Plan
from .instant import InstantRequest
from .rule import Rule
from .schedule import Schedule


def replan(schedule: Schedule, times: tuple[float, ...], request: InstantRequest | None = None) -> Rule:
    """Returns the rule for another grid with the same budgets.

    Rules that do not depend on the grid are returned as they are. The plan is that of the kernel, and where theory
    holds the weights are matched in its worlds. Elsewhere they are fitted to the kernel alone (open loop): they use
    outputs only, and errors of earlier steps are not undone.

    Arguments:
        times: The N times of the grid, falling.
        request: The run, for theory; None where its sampler is not known, or adds noise.

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
    tables, history = [], rule.forecast.history
    if set(rule.forecast.features) - {"past_c"} != {"x", "x0"} or len(rule.forecast.table[0]) > 1:
        request = None
    for gear in rule.policy.gears:
        steps = best_plan(errors, sensitivity, max(1, round(gear.budget * len(times))))
        gears.extend(Plan.of(steps, times).gears)
        if request and len(steps) >= request.least:
            rows = request.make(len(steps), history, steps).matching.rows
        else:
            rows = fit_open_loop_table(gram, steps, history)
            rows = tuple((*row, 0.0, 0.0) if row and request else row for row in rows)
        tables.append((rows,))
    forecast = Matched(history=history, features=("x", "x0") if request else (), table=tuple(tables))
    return Rule(site=rule.site, policy=Plan(gears=tuple(gears)), forecast=forecast)
