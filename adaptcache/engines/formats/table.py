"""A plain table of times, plan and the weights of all steps that have some; docs/table.md defines it."""

import json
from typing import Any

from ...errors import ScheduleError
from ...forecasts.base import Forecast
from ...forecasts.matched import Matched
from ...policies.plan import Plan
from ...schedule.findings import ONE_OUTPUT
from ...schedule.format import EULER
from ...schedule.replan import replan
from ...schedule.rule import Rule
from ...step import Step
from .mask import Exported, Format, ReusePlan, ReusePlanner, Settings, computed_steps

VERSION = "2"  # of the table; 1 has no rows of computed steps


def write(planner: ReusePlanner) -> Exported:
    """Returns the table as JSON. All numbers are those of the schedule, with all their digits."""
    schedule, times, gear, n = planner.schedule, planner.times, planner.gear, planner.steps
    rule = replan(schedule, times) if planner.moved else schedule.rules[0]
    forecast = rule.forecast
    if rule.site != "step" or type(forecast).combine is not Forecast.combine:
        raise ScheduleError(
            f"{schedule.name} has no table: its forecast ({forecast.type!r} at the site {rule.site!r}) is no "
            "weighted sum of model outputs and latents; calibrate one with matched weights"
        )
    if forecast.keeps_branches:
        raise ScheduleError(f"{schedule.name} has no table: it {ONE_OUTPUT.format(where='a table')}")
    plan = computed_steps(schedule.model_copy(update={"rules": (rule,)}), gear, times)
    if planner.asked not in (None, len(plan)):
        raise ScheduleError(f"a table has the plan of the schedule, {len(plan)} calls: leave out the calls")
    tracks = len(forecast.table[gear]) if isinstance(forecast, Matched) else 1
    steps = [[Step(i, times, known(plan, i), gear, track) for i in range(n)] for track in range(tracks)]
    rows = [
        [row_of(forecast, step, plan) for step in own if step.index not in plan or forecast.corrects(step)]
        for own in steps
    ]
    table: dict[str, Any] = {
        "table": 2 if any(row["step"] in plan for own in rows for row in own) else 1,
        "name": schedule.name,
        "denoiser": schedule.denoiser.model_dump(by_alias=True),
        "scheduler": schedule.grid.scheduler,
        "call": schedule.made.get("call", {}),
        "times": times,
        "compute": plan,
        "tracks": rows,
    }
    if schedule.grid.scheduler == EULER and not (schedule.made.get("scheduler") or {}).get("invert_sigmas"):
        table["sigmas"] = (*times, 0.0)
    expects = (
        f"these {n} times and the sampler they were fitted with ({schedule.grid.scheduler or 'any'})",
        "a loop that forecasts the guided output, which the sampler is given",
    )
    use = "# docs/table.md defines {path} and has a player for it\n"
    return Exported(".json", json.dumps(table) + "\n", use, ReusePlan.of(plan, n), expects)


def known(plan: list[int], index: int) -> tuple[int, ...]:
    """Returns the computed steps before a step, newest first."""
    return tuple(step for step in reversed(plan) if step < index)


def row_of(forecast: Forecast, step: Step, plan: list[int]) -> dict[str, Any]:
    """Returns the row of a skipped or corrected step."""
    found, outputs = forecast.weights(step), (*((step.index,) if step.index in plan else ()), *step.past)
    row: dict[str, Any] = {"step": step.index, "from": outputs[: len(found.past)]}
    row["u"] = tuple(map(float, found.past))
    row |= {"past_x": found.past_x} if found.past_x else {}
    return row | {"x": found.x, "x0": found.x0}


def read(data: Any, steps: int | None) -> Settings:
    times, tracks = tuple(data["times"]), data["tracks"]
    if data["table"] not in (1, 2):
        raise ScheduleError(f"this reads tables of versions 1 and 2, not {str(data['table'])[:40]}")
    rows = [row for track in tracks for row in track]
    if data["table"] == 1 and (early := {row["step"] for row in rows} & set(data["compute"])):
        raise ScheduleError(f"step {min(early)} is computed and has weights, which tables have from version 2 on")
    features = tuple(name for name in ("past_x", "x", "x0") if any(row.get(name) for row in rows))
    table = [[()] * len(times) for _ in tracks]
    for number, track in enumerate(tracks):
        for row in track:
            others = tuple(row[name] for name in features if name != "past_x")
            past_x = tuple(row["past_x"]) if "past_x" in features else ()
            table[number][row["step"]] = (*row["u"], *past_x, *others)
    depth = max((len(row["u"]) for row in rows), default=1)
    rule = Rule(
        policy=Plan.of(data["compute"], times),
        forecast=Matched(history=depth, features=features, table=(tuple(map(tuple, table)),)),
    )
    return Settings(rule, len(times), times)


FORMAT = Format("table", VERSION, read, write, keys=("table",))
