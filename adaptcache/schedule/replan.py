"""Makes a schedule anew: for a grid it was not fitted on, or for runs that have no skipped steps.

On another grid it is planned from the kernel that it carries, with weights from theory.

Steps are joined from one denoiser call to the next: the same run in as many steps as calls. Euler's step adds the
output to the latents, and the output of a skipped step is a weighted sum of earlier outputs and of latents. So the
latents after the skipped steps are such a sum as well, and one step with its weights goes there: those of a schedule
with own times. What the pipeline and its scheduler do at a skipped step is saved.
"""

import numpy as np

from ..errors import ScheduleError
from ..fitting.kernel import Array, fit_open_loop_table, pair_errors
from ..fitting.plan import best_plan
from ..forecasts.base import Weights
from ..forecasts.matched import Feature, Matched, Row, split_row
from ..policies.plan import Gear, Plan
from .format import EULER, Grid
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


def collapse(schedule: Schedule, gear: int = 0) -> Schedule:
    """Returns what `Schedule.collapse` says."""
    gear, rule, times = schedule.check_gear(gear), schedule.rules[0], schedule.grid.times
    forecast, policy, config = rule.forecast, rule.policy, schedule.made.get("scheduler") or {}
    if not (isinstance(forecast, Matched) and isinstance(policy, Plan) and rule.site == "step"):
        raise ScheduleError(f"{schedule.name} has no plan with matched weights: there are no steps to join")
    if schedule.grid.scheduler != EULER or config.get("stochastic_sampling") or config.get("invert_sigmas"):
        raise ScheduleError(
            f"the steps of {schedule.name} cannot be joined: its sampler ({schedule.grid.scheduler or 'any'}) is no "
            f"{EULER} that adds no noise and falls"
        )
    plan, table, ends = policy.steps(times, gear), forecast.table[gear][0], [*times, 0.0]
    if schedule.loops or schedule.left or len(forecast.table[gear]) > 1 or plan[0] > 0:
        raise ScheduleError(f"the steps of {schedule.name} cannot be joined: its plan is not of one whole loop")
    if schedule.grid.full:
        return schedule
    rows = list[Row]()
    for k, (first, after) in enumerate(zip(plan, (*plan[1:], len(times)), strict=True)):
        outputs = min(forecast.history, k + 1)
        moved = np.zeros(3 * outputs + 2)  # how far the latents are from those at the first of these steps, as weights
        for i in range(first, after):
            weights = split_row(table[i], forecast.features) if table[i] else Weights((1.0,))
            u = vector(weights, outputs)
            moved += (ends[i + 1] - ends[i]) * (u + weights.x * moved)  # the latents here are those there, moved
        rows.append(row_of(moved / (ends[after] - ends[first]), forecast.features))
    joined = Plan.of(range(len(plan)), tuple(times[i] for i in plan))
    if policy.signal_specs:
        joined = joined.model_copy(update={"signal_specs": (policy.signal_specs[gear],)})
    forecast = Matched(history=forecast.history, features=forecast.features, table=((tuple(rows),),))
    made = dict(schedule.made)
    if branches := made.get("branches"):
        made["branches"] = [branches[i] for i in plan]
    return schedule.model_copy(
        update={
            "name": f"{schedule.name}-joined", "kernel": None, "made": made,
            "evidence": schedule.evidence if schedule.gears == 1 else None,
            "grid": Grid(scheduler=EULER, times=joined.gears[0].compute, full=times),
            "rules": (rule.model_copy(update={"policy": joined, "forecast": forecast}),),
        }
    )  # fmt: skip


def vector(weights: Weights, outputs: int) -> Array:
    """Returns weights with shape (3 M + 2,) for M outputs: of these, of `past_x`, of `past_c`, of `x` and of `x0`."""
    listed = (weights.past, weights.past_x, weights.past_c)
    padded = [value for values in listed for value in (*values, *(0.0,) * outputs)[:outputs]]
    return np.array([*padded, weights.x, weights.x0])


def row_of(weights: Array, features: tuple[Feature, ...]) -> Row:
    """Returns the row of a table for weights as `vector` has them."""
    *listed, rest = np.split(weights, range(m := (len(weights) - 2) // 3, 3 * m + 1, m))
    known = dict(zip(("past", "past_x", "past_c"), listed, strict=True), x=rest[:1], x0=rest[1:])
    return tuple(float(value) for name in ("past", *features) for value in known[name])
