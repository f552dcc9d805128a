"""Schedules with noise levels of their own: a run is as many steps as calls, and ends where matching says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CALL, STEPS
from diffusers import FluxPipeline
from table_player import euler, play

import adaptcache
from adaptcache.calibration.fit import fit_schedule
from adaptcache.calibration.match import Fit, match
from adaptcache.calibration.own import fit_own_times, measured_at, through
from adaptcache.calibration.refine import Point, columns_of, cross_validated, refine
from adaptcache.engines.diffusers.sampler import sampler
from adaptcache.engines.formats import export
from adaptcache.errors import ScheduleError
from adaptcache.evaluation.validate import evidence_of, other_calls
from adaptcache.forecasts.matched import Matched
from adaptcache.policies.plan import Plan
from adaptcache.profiling.measure import measure
from adaptcache.runs import PromptSet
from adaptcache.schedule.format import Baseline, Grid
from adaptcache.schedule.rule import Rule
from adaptcache.schedule.schedule import Schedule

CALLS = 3


@pytest.fixture
def own(pipe: FluxPipeline, prompts: list) -> Schedule:
    setup, chosen = CALL.of(pipe, batch_size=4), PromptSet.of(prompts[:4])
    return fit_own_times(measure(setup, chosen), CALLS, Fit(), 8.0)


def test_a_full_run_passes_straight_from_step_to_step(pipe: FluxPipeline, prompts: list) -> None:
    setup, chosen = CALL.of(pipe), PromptSet.of(prompts[:1])
    run = measure(setup, chosen).runs[0]
    times = (run.times[0], (run.times[2] + run.times[3]) / 2, run.times[5])
    found = through(run, times)
    torch.testing.assert_close(found.x[0][1], (run.x[0][2] + run.x[0][3]) / 2)
    torch.testing.assert_close(found.x[0][2], run.x[0][5])
    torch.testing.assert_close(found.y[0][1], run.x[0][5])
    assert found.y[0][-1] is run.y[0][-1]
    for k, end in enumerate((*times[1:], 0.0)):
        torch.testing.assert_close(found.x[0][k] + (end - times[k]) * found.u[0][k], found.y[0][k])


def test_a_run_is_as_many_steps_as_calls_and_leaves_the_grid_as_it_was(
    pipe: FluxPipeline, prompts: list, own: Schedule, tmp_path: Path
) -> None:
    assert len(own.grid.times) == CALLS and own.grid.steps == STEPS and own.format == 2 and own.corrects
    assert own.made["branches"] == [1.0] * CALLS and own.made["latents"] and own.made["prompt_arguments"]
    saved = own.save(tmp_path / "own.json")
    assert Schedule.load(saved).save(tmp_path / "again.json").read_bytes() == saved.read_bytes()
    full = CALL(pipe, prompts[:4])
    with adaptcache.attach(pipe, own, strict=True) as handle:
        made = CALL(pipe, prompts[:4])
    report = handle.report()
    assert len(report.calls) == report.made == CALLS and report.evidence == "calibrated"
    torch.testing.assert_close(CALL(pipe, prompts[:4]), full)
    plain = type(CALL)(CALLS, CALL.arguments)(pipe, prompts[:4])
    assert (made - full).norm() < 0.5 * (plain - full).norm()


def test_matching_knows_where_runs_at_own_times_end(pipe: FluxPipeline, prompts: list, own: Schedule) -> None:
    setup, chosen = CALL.of(pipe, batch_size=4), PromptSet.of(prompts[:4])
    measured = measured_at(measure(setup, chosen), own.grid.times)
    found = match(measured, range(CALLS))
    truth = measured.runs[0].y[0][-1]
    rule = own.rules[0].model_copy(update={"forecast": found.forecast})
    with adaptcache.attach(pipe, own.model_copy(update={"rules": (rule,)})):
        made = CALL(pipe, prompts[:4])
    ends = [float((a - b).square().sum() / b.square().sum()) for a, b in zip(made, truth, strict=True)]
    assert np.exp(np.log(ends).mean()) == pytest.approx(found.error, rel=1e-2)


def test_on_other_grids_it_warns_or_refuses(pipe: FluxPipeline, prompts: list, own: Schedule) -> None:
    other = type(CALL)(STEPS + 2, CALL.arguments)
    with adaptcache.attach(pipe, own) as handle, pytest.warns(UserWarning, match="8 other steps, this run has 10"):
        other(pipe, prompts[:1])
    assert handle.report().evidence == "extrapolated"
    with adaptcache.attach(pipe, own, strict=True), pytest.raises(ScheduleError, match="8 other steps"):
        other(pipe, prompts[:1])
    grid = {**dict(own.grid), "times": (*own.grid.times, own.grid.times[-1] / 2)}
    with pytest.raises(ValueError, match="computes at all"):
        Schedule.model_validate({**dict(own), "grid": grid})


@pytest.mark.parametrize("features", [(), ("x",), ("x0", "x"), ("past_x", "x0")])
@pytest.mark.parametrize("plan", [(0,), (0, 1, 2, 5), (0, 3, 4, 7), tuple(range(STEPS))])
def test_joined_steps_end_where_the_skipped_ones_end(
    pipe: FluxPipeline, prompts: list, plan: tuple[int, ...], features: tuple[Any, ...]
) -> None:
    numbers = np.random.default_rng(len(plan))
    CALL(pipe, prompts[:1])
    times = tuple(float(t) / 1000 for t in pipe.scheduler.timesteps)
    rows = []
    for i in range(STEPS):
        known = min(2, sum(step <= i for step in plan))
        each = known * (1 + ("past_x" in features))
        width = 0 if i in plan and i % 2 else each + len({"x", "x0"} & set(features))
        rows.append(tuple(numbers.normal(0.3, 0.2, width)))
    rule = {"policy": Plan.of(plan, times), "forecast": Matched(history=2, features=features, table=((tuple(rows),),))}
    grid = Grid(scheduler="FlowMatchEulerDiscreteScheduler", times=times)
    schedule = Schedule(name="random", grid=grid, rules=(Rule(**rule),))
    joined = Schedule.model_validate(schedule.collapse().data())
    assert joined.plans == [list(range(len(plan)))] and joined.grid.full == times
    made = {}
    for one in (schedule, joined):
        with adaptcache.attach(pipe, one, strict=True) as handle:
            made[one.name] = CALL(pipe, prompts[:2])
        assert handle.report().made == len(plan)
    torch.testing.assert_close(made["random-joined"], made["random"], rtol=1e-4, atol=1e-4)
    assert joined.collapse() is joined


def test_steps_that_cannot_be_joined_are_refused(pipe: FluxPipeline, prompts: list, own: Schedule) -> None:
    with pytest.raises(ScheduleError, match="has no plan with matched weights"):
        Schedule.of("teacache", model="flux").collapse()
    times = tuple(1 - i / STEPS for i in range(STEPS))
    instant = Schedule.instant(times, 1.0)
    with pytest.raises(ScheduleError, match=r"its sampler \(any\) is no FlowMatchEuler"):
        instant.collapse()
    grid = Grid(scheduler="FlowMatchEulerDiscreteScheduler", times=times)
    instant = instant.model_copy(update={"grid": grid})
    assert instant.collapse().grid.full == times
    other = instant.model_copy(update={"grid": Grid(scheduler="DDIMScheduler", times=times)})
    with pytest.raises(ScheduleError, match=r"its sampler \(DDIMScheduler\) is no FlowMatchEuler"):
        other.collapse()
    late = Rule(policy=Plan.of((1, 4), times), forecast=Matched(history=1, features=(), table=((((1.0,),) * STEPS,),)))
    with pytest.raises(ScheduleError, match="not of one whole loop"):
        instant.model_copy(update={"rules": (late,)}).collapse()
    with pytest.raises(LookupError, match="no gear 3"):
        instant.collapse(3)


def test_samplers_that_take_no_levels_are_refused_before_a_run(
    pipe: FluxPipeline, prompts: list, own: Schedule
) -> None:
    pipe.scheduler = sampler("UniPCMultistepScheduler", pipe.scheduler)
    setup, chosen = CALL.of(pipe), PromptSet.of(prompts[:1])
    with pytest.raises(ScheduleError, match="need full runs of a FlowMatchEulerDiscreteScheduler"):
        fit_own_times(measure(setup, chosen), CALLS, Fit(), 1.0)
    with pytest.raises(ValueError, match="times must be 'grid' or 'own', got 'free'"):
        adaptcache.calibrate(pipe, prompts, STEPS, speed=2, times="free", pipe_kwargs=CALL.arguments)


def test_a_table_of_own_times_is_all_a_player_needs(pipe: FluxPipeline, prompts: list, own: Schedule) -> None:
    table = json.loads(export(own, "table").text)
    assert table["table"] == 2 and table["compute"] == list(range(CALLS)) and len(table["sigmas"]) == CALLS + 1
    with pytest.raises(ScheduleError, match="has times of its own, which diffusers"):
        export(own, "diffusers")
    u: list[np.ndarray] = []
    x: list[np.ndarray] = []

    def landed(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        x.append(tensors["latents"].numpy().copy())
        return {}

    hook = pipe.transformer.register_forward_hook(lambda *args: u.append(args[2][0].numpy().copy()))
    with hook, adaptcache.attach(pipe, own):
        type(CALL)(STEPS, {**CALL.arguments, "callback_on_step_end": landed})(pipe, prompts[:1])
    generator = torch.Generator().manual_seed(0)
    start = pipe.prepare_latents(1, 4, 16, 16, torch.float32, "cpu", generator)[0].numpy()
    played = play(table, start, lambda _, step: u[step], euler(table))
    np.testing.assert_allclose(played[-1], x[-1], atol=1e-5)


def test_refining_all_weights_together_is_never_worse(pipe: FluxPipeline, prompts: list) -> None:
    setup, chosen = CALL.of(pipe, batch_size=6), PromptSet.of(prompts[:6])
    measured, fit, plan = measure(setup, chosen), Fit(), [0, 3, 6]
    for here, steps in ((measured, plan), (measured_at(measured, (1.0, 0.6, 0.2)), range(3))):
        found = match(here, steps, fit)
        better = refine(here, replace(found, cost=0.0), fit, 300.0)
        assert better.error <= found.error and 0 < better.cost <= 300
        assert not here.own or (better.error < found.error and better.times != found.times)
        assert refine(here, found, fit, 1.0) is found  # too little for an iteration
    point = Point(found.forecast.table[0], found.times)
    weights = sum(map(len, point.rows[0]))
    assert len(columns_of(point, found.plan, own=False)) == weights
    assert columns_of(point, found.plan, own=True)[weights:] == [(-1, 1, 0), (-1, 2, 0)]
    moved = point.moved([(-1, 1, 0), (-1, 2, 0)], np.array([-9.0, 9.0])).times
    assert 1.0 > moved[1] > moved[2] > 0


def test_changes_that_do_not_carry_over_to_prompts_left_out_are_not_made() -> None:
    numbers = np.random.default_rng(0)
    slopes, truth = numbers.normal(size=(16, 40, 5)), numbers.normal(size=5)  # prompts, coordinates, weights

    def solve(lack: np.ndarray) -> np.ndarray | None:
        energy = (lack**2).sum(1)[:, None]
        moment = np.einsum("pcw,pc->pw", slopes, lack) / energy
        return cross_validated(np.einsum("pcw,pcv->pwv", slopes, slopes) / energy[..., None], moment)

    np.testing.assert_allclose(solve(slopes @ truth), truth, atol=1e-3)
    assert solve(numbers.normal(size=(16, 40))) is None  # nothing that the weights could learn


def test_refined_schedules_say_what_they_cost_and_gained(pipe: FluxPipeline, prompts: list) -> None:
    setup, chosen = CALL.of(pipe, batch_size=6), PromptSet.of(prompts[:6])
    search = fit_schedule(measure(setup, chosen), CALLS, Fit(), 100.0).made["search"]
    assert search["gain_db"] >= 0 and 12 < search["full_runs"] <= 100 + 2 * 6 * CALLS / STEPS


def test_a_schedule_that_as_few_plain_steps_beat_says_do_not_cache() -> None:
    plain = Baseline(steps=4, psnr={"mean": 41.0, "p05": 30.0})
    good = evidence_of([40.0, 44.0], 4, 8, baseline=plain)
    assert good.verdict is None and good.lead == {"mean": 1.0, "p05": pytest.approx(10.2)}
    bad = evidence_of([40.0, 41.0], 4, 8, baseline=plain)
    assert bad.verdict and bad.verdict.startswith("Do not cache: 4 plain steps keep 41.0 dB (5th percentile 30.0)")


def test_evidence_holds_as_many_plain_steps_and_the_precision_floor(pipe: FluxPipeline, prompts: list) -> None:
    setup = {"pipe_kwargs": CALL.arguments, "batch_size": 2, "progress": False}
    made = adaptcache.calibrate(pipe, prompts[:2], STEPS, budget=0.5, eval_prompts=prompts[2:5], **setup)
    seen = made.evidence
    rows = adaptcache.evaluate(pipe, made, prompts[2:5], STEPS, first=2, **setup)
    assert seen.baseline.steps == 4 and seen.baseline.psnr == pytest.approx(rows[2].psnr, abs=0.01)
    assert seen.precision_floor > 60 and seen.psnr == pytest.approx(rows[1].psnr, abs=0.01)
    assert made.format == 2


def test_a_matrix_measures_other_calls(pipe: FluxPipeline, prompts: list) -> None:
    given = {"pipe_kwargs": CALL.arguments, "batch_size": 2, "progress": False, "eval_prompts": prompts[2:4]}
    made = adaptcache.calibrate(
        pipe, prompts[:2], STEPS, budget=0.5, matrix=[{"num_inference_steps": 12}, {"height": 32}], **given
    )
    steps, size = made.evidence.matrix
    assert steps.changed == {"num_inference_steps": 12} and steps.calls == (6, 12) and steps.baseline.steps == 6
    assert size.changed == {"height": 32} and size.calls == (4, STEPS) and size.n == 2 and size.psnr["mean"] > 10
    with pytest.raises(ValueError, match="held-out prompts"):
        adaptcache.calibrate(pipe, prompts[:2], STEPS, budget=0.5, matrix=True, **{**given, "eval_prompts": ()})
    call = replace(CALL.of(pipe).call, pipe_kwargs={"height": 32, "width": 32, "true_cfg_scale": 3.0})
    assert other_calls(call) == [
        {"num_inference_steps": 6}, {"num_inference_steps": 12}, {"true_cfg_scale": 2.25}, {"true_cfg_scale": 4.5},
        {"height": 48, "width": 48},
    ]  # fmt: skip
