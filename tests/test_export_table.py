"""The table of times, plan and weights is all a loop needs: a player in NumPy lands where `attach` does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CALL, STEPS, embedded, schedule_of
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline
from table_player import euler, play
from test_export import kernel, schedule

import adaptcache
from adaptcache.engines.formats import export
from adaptcache.engines.formats.adopt import adopt
from adaptcache.engines.formats.read import read_schedule
from adaptcache.errors import ScheduleError
from adaptcache.forecasts.adams_bashforth import AdamsBashforth
from adaptcache.forecasts.extrapolate import Extrapolate
from adaptcache.forecasts.frequency import Frequency
from adaptcache.forecasts.matched import Matched
from adaptcache.forecasts.velocity import Velocity
from adaptcache.policies.plan import Plan
from adaptcache.schedule.format import Grid
from adaptcache.schedule.rule import Rule
from adaptcache.schedule.schedule import Schedule

PLAN = [0, 1, 3, 6]
SHIPPED = sorted((Path(__file__).parents[1] / "schedules").glob("*.json"))


def table_of(schedule: Schedule, **options: Any) -> dict[str, Any]:
    return json.loads(export(schedule, "table", **options).text)


def matched(
    seed: int = 0, features: tuple[str, ...] = ("x", "x0"), plan: list[int] = PLAN, correct: bool = False
) -> Matched:
    """Random weights, of as many outputs as there are."""
    random = np.random.default_rng(seed)
    rows = []
    for step in range(STEPS):
        outputs = min(3, sum(computed < step + correct for computed in plan))
        each = 1 + ("past_x" in features)
        weights = random.normal(size=each * outputs + len(features) + 1 - each) * 0.3
        rows.append(() if step in plan and not (correct and step > 1) else tuple(map(float, weights)))
    return Matched(history=3, features=features, table=((tuple(rows),),))


class Followed:
    """What a pipeline did under a schedule: outputs of the denoiser by step, and latents after every step."""

    def __init__(self, pipe: FluxPipeline, schedule: Schedule) -> None:
        self.u: list[np.ndarray] = []
        self.x: list[np.ndarray] = []
        hook = pipe.transformer.register_forward_hook(lambda *args: self.u.append(args[2][0].numpy().copy()))
        call = type(CALL)(STEPS, {**CALL.arguments, "callback_on_step_end": self.landed})
        try:
            with adaptcache.attach(pipe, schedule) as handle:
                call(pipe, embedded(1))
        finally:
            hook.remove()
        self.computed = handle.report().computed

    def landed(self, pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        self.x.append(tensors["latents"].numpy().copy())
        return {}


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize(
    "forecast",
    [
        matched(), matched(features=("past_x", "x", "x0")), matched(features=()), matched(correct=True),
        matched(features=("past_x", "x", "x0"), correct=True),
        Extrapolate(order=2), AdamsBashforth(order=2), Velocity(),
    ],
    ids=["matched", "past_x", "outputs", "corrected", "corrected-x", "extrapolate", "adams-bashforth", "velocity"],
)  # fmt: skip
def test_the_player_lands_where_a_real_pipeline_lands(
    pipe: FluxPipeline, forecast: Any, shift: float, tmp_path: Path
) -> None:
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    pipe.scheduler.set_timesteps(STEPS, sigmas=np.linspace(1.0, 1 / STEPS, STEPS))
    times = tuple(float(t) / 1000 for t in pipe.scheduler.timesteps)
    by_hand = schedule_of(pipe, PLAN, forecast=forecast)
    rule = Rule(policy=Plan.of(PLAN, times), forecast=forecast)
    fitted = by_hand.model_copy(update={"grid": Grid(scheduler=by_hand.grid.scheduler, times=times), "rules": (rule,)})
    path = export(fitted, "table").save(tmp_path / "table.json")
    table = json.loads(path.read_text())
    run = Followed(pipe, fitted)
    assert run.computed == table["compute"] == PLAN
    outputs = dict(zip(PLAN, run.u, strict=True))
    first = run.x[0] - (times[1] - times[0]) * outputs[0]  # the noise

    def denoise(x: np.ndarray, step: int) -> np.ndarray:
        np.testing.assert_allclose(x, run.x[step - 1] if step else first, atol=1e-5)  # it is where the pipeline was
        return outputs[step]

    for step, (ours, theirs) in enumerate(zip(play(table, first, denoise, euler(table)), run.x, strict=True)):
        np.testing.assert_allclose(ours, theirs, atol=1e-5, err_msg=f"after step {step}")


def test_on_a_linear_denoiser_the_player_is_the_closed_form() -> None:
    table = table_of(schedule([0, 2], matched=False, steps=4).model_copy(update={"kernel": None}))
    slope = np.diag([1.0, -2.0])
    x = start = np.array([[1.0, 3.0]])
    expected, u = [], x
    for step in range(4):  # reuse: of step 0 twice, of step 2 twice
        u = u if step % 2 else x @ slope
        x = x - u / 4
        expected.append(x)
    for ours, theirs in zip(play(table, start, lambda x, i: x @ slope, euler(table)), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_numbers_of_shipped_schedules_are_in_their_tables_to_the_last_digit(path: Path) -> None:
    shipped = Schedule.load(path)
    table = table_of(shipped)
    rule = shipped.rules[0]
    assert table["times"] == list(shipped.grid.times)
    assert table["compute"] == rule.policy.steps(shipped.grid.times)
    features = rule.forecast.features
    for row in table["tracks"][0]:
        found = [*row["u"], *row.get("past_x", ()), *(row[name] for name in features if name != "past_x")]
        assert tuple(found) == rule.forecast.table[0][0][row["step"]]
        assert row["from"] == [c for c in reversed(table["compute"]) if c <= row["step"]][: len(row["u"])]
    steps = [row["step"] for row in table["tracks"][0]]
    assert sorted({*steps, *table["compute"]}) == list(range(len(table["times"])))
    flow = shipped.grid.scheduler == "FlowMatchEulerDiscreteScheduler"
    assert table.get("sigmas") == ([*table["times"], 0.0] if flow else None)
    assert table["denoiser"]["weights_hash"] == shipped.denoiser.weights_hash


@pytest.mark.parametrize("correct", [False, True])
@pytest.mark.parametrize("features", [(), ("x", "x0"), ("past_x", "x", "x0")])
def test_a_table_read_again_is_the_schedule_it_was(
    pipe: FluxPipeline, features: tuple[str, ...], correct: bool, tmp_path: Path
) -> None:
    fitted = schedule_of(pipe, PLAN, forecast=matched(features=features, correct=correct))
    path = export(fitted, "table").save(tmp_path / "t.json")
    assert adopt(path, fitted).rules == fitted.rules == read_schedule(path).rules
    assert read_schedule(path).grid.times == fitted.grid.times
    with pytest.raises(ScheduleError, match="are for 8 steps, the target has 9"):
        adopt(path, schedule([0]))
    shifted = tuple(t**2 for t in fitted.grid.times)
    with pytest.raises(ScheduleError, match="other times"):
        adopt(path, fitted.model_copy(update={"grid": Grid(times=shifted)}))


def test_a_table_of_another_version_is_refused(pipe: FluxPipeline) -> None:
    table = table_of(schedule_of(pipe, PLAN, forecast=matched(correct=True)))
    assert table["table"] == 2 and table_of(schedule_of(pipe, PLAN, forecast=matched()))["table"] == 1
    with pytest.raises(ScheduleError, match="versions 1 and 2, not 3"):
        adopt(table | {"table": 3}, schedule_of(pipe, PLAN))
    with pytest.raises(ScheduleError, match="step 3 is computed and has weights"):
        adopt(table | {"table": 1}, schedule_of(pipe, PLAN))


def test_a_table_for_other_steps_is_what_attach_plans_there(pipe: FluxPipeline) -> None:
    fitted = schedule_of(pipe, PLAN, forecast=matched()).model_copy(update={"kernel": kernel(steps=STEPS)})
    table = table_of(fitted, steps=12)
    assert len(table["times"]) == 12 and len(table["compute"]) == 6
    with pytest.warns(UserWarning, match="planned anew"), adaptcache.attach(pipe, fitted) as handle:
        type(CALL)(12, CALL.arguments)(pipe, embedded(1))
    assert handle.report().computed == table["compute"]


def test_what_is_no_weighted_sum_has_no_table(pipe: FluxPipeline) -> None:
    with pytest.raises(ScheduleError, match=r"its forecast \('frequency' at the site 'step'\) is no weighted sum"):
        export(schedule_of(pipe, PLAN, forecast=Frequency()), "table")
    blocks = schedule_of(pipe, PLAN)
    rule = blocks.rules[0].model_copy(update={"site": "blocks"})
    with pytest.raises(ScheduleError, match="at the site 'blocks'"):
        export(blocks.model_copy(update={"rules": (rule,)}), "table")
    with pytest.raises(ScheduleError, match="leave out the calls"):
        export(schedule_of(pipe, PLAN), "table", calls=3)


@pytest.mark.slow
def test_the_player_lands_where_the_demo_model_lands() -> None:
    from adaptcache.presets import resolve

    shipped = Schedule.load(SHIPPED[0])
    preset = resolve("emoji-flux-32")
    pipe = preset.load_pipeline("cpu")
    pipe.set_progress_bar_config(disable=True)
    u, x = [], []
    hook = pipe.transformer.register_forward_hook(lambda *args: u.append(args[2][0].numpy().copy()))

    def landed(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        x.append(tensors["latents"].numpy().copy())
        return {}

    with hook, adaptcache.attach(pipe, shipped), torch.no_grad():
        type(CALL)(preset.steps, {**preset.call, "callback_on_step_end": landed})(pipe, ["a red apple"])
    table = table_of(shipped)
    outputs = dict(zip(table["compute"], u, strict=True))
    first = x[0] - (table["sigmas"][1] - table["sigmas"][0]) * outputs[0]
    played = play(table, first, lambda _, step: outputs[step], euler(table))
    np.testing.assert_allclose(played[-1], x[-1], atol=1e-5)
