"""Comparisons on a tiny real pipeline: every method makes the calls it says, from the same noise."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CALL, STEPS, embedded, tiny_flux

from adaptcache import comparison as module
from adaptcache.comparison.baselines import BASELINES, annealing, magcache, taylorseer
from adaptcache.comparison.baselines.annealing import anneal
from adaptcache.comparison.baselines.base import Case, even_steps, planned_steps
from adaptcache.comparison.baselines.samplers import MultistepHook
from adaptcache.comparison.runner import ComparisonRunner, Tried, lead_over, settings_between
from adaptcache.comparison.trial import (
    MacCounter,
    Trial,
    blocks_of,
    latent_error,
    measure_memory,
    run_trial,
    storages,
)
from adaptcache.engines.diffusers.engine import DiffusersEngine, twin
from adaptcache.hooks import SchedulerStep
from adaptcache.profiling.measure import measure
from adaptcache.runs import PipelineCall, PromptSet, Setup

PROMPTS = PromptSet.of(embedded(2))
ARGUMENTS = CALL.arguments


def setup_of(pipe: Any, **more: Any) -> Setup:
    engine = DiffusersEngine(pipe, exclusive=True)
    return Setup(engine, PipelineCall(STEPS, ARGUMENTS), **more)


@pytest.fixture(scope="module")
def profile() -> Any:
    return measure(CALL.of(tiny_flux(num_layers=2, num_single_layers=2)), PROMPTS[:1]).profile


@pytest.fixture
def case(profile: Any, monkeypatch: pytest.MonkeyPatch) -> Case:
    monkeypatch.setattr(annealing, "TRIALS", 4)
    setup = setup_of(twin(tiny_flux(num_layers=2, num_single_layers=2)))
    return Case(setup, PROMPTS[:1], (4, 2), {4: [0, 1, 3, 5], 2: [0, 3]}, profile)


@pytest.fixture
def full(case: Case) -> Trial:
    return run_trial(case.setup, PROMPTS[:1])


def by(case: Case, name: str, params: Any) -> Trial:
    with BASELINES[name].apply(case, params) as ready:
        return run_trial(replace(case.setup, call=ready.call), PROMPTS[:1], ready.hook)


def calls(trial: Trial, full: Trial) -> float:
    return STEPS * trial.work / full.work


def baselines(*names: str) -> list[Any]:
    here = importlib.util.find_spec("cache_dit") is not None
    skip = pytest.mark.skipif(not here, reason="cache-dit is not installed")
    return [pytest.param(n, marks=skip if BASELINES[n].package == "cache-dit" else ()) for n in names]


def compared(budgets: list[float], methods: list[str], prompts: int = 3, held_out: int = 2, **more: Any) -> Any:
    return module.compare(
        tiny_flux(), embedded(prompts), embedded(held_out, seed=5), budgets, STEPS, methods=methods,
        pipe_kwargs=ARGUMENTS, **more,
    )  # fmt: skip


@pytest.mark.skipif(importlib.util.find_spec("cache_dit") is None, reason="cache-dit is not installed")
def test_what_runs_after_cache_dit_runs_as_before_it(case: Case) -> None:
    knobs = {
        "threshold": 0.5, "max_skip_steps": STEPS, "retention_ratio": 0.0, "num_inference_steps": STEPS,
        "mag_ratios": [2.0 if i % 2 == 0 else 1.0 for i in range(STEPS)],
    }  # fmt: skip
    before = by(case, "MagCache", knobs)
    by(case, "DBCache", {"residual_diff_threshold": 0.2, "max_warmup_steps": 1})
    after = by(case, "MagCache", knobs)
    assert all(torch.equal(a, b) for a, b in zip(before.latents, after.latents, strict=True))


@pytest.mark.parametrize("name", baselines(*BASELINES))
def test_every_method_starts_from_the_same_noise_and_leaves_the_pipeline_as_it_was(
    case: Case, full: Trial, name: str
) -> None:
    if why := BASELINES[name].find_obstacle(case):
        assert name in ("SeaCache", "AYS") and "FluxPipeline" in why, why
        return
    for params in BASELINES[name].propose(case)[:2]:
        made = by(case, name, params)
        assert all(torch.equal(a, b) for a, b in zip(made.noise, full.noise, strict=True))
        assert calls(made, full) <= STEPS * 1.01  # TeaCache's signal costs a little at every step
    again = run_trial(case.setup, PROMPTS[:1])
    assert torch.equal(again.latents[0], full.latents[0]) and again.work == full.work


@pytest.mark.parametrize("name", ["fewer steps", "AB2", "UniPC", "DPM++ 2M"])
def test_samplers_make_one_call_a_step(case: Case, full: Trial, name: str) -> None:
    for params in BASELINES[name].propose(case):
        made = by(case, name, params)
        assert made.steps == params.get("steps", len(params.get("plan", ())))
        assert calls(made, full) == pytest.approx(made.steps)


def test_magcache_computes_the_steps_its_rule_says_on_paper(case: Case, full: Trial) -> None:
    settings = BASELINES["MagCache"].propose(case)
    assert settings
    for params in settings:
        plan = planned_steps(magcache.policy_of(params), STEPS)
        assert calls(by(case, "MagCache", params), full) == pytest.approx(len(plan))


def test_taylorseer_lite_computes_the_steps_its_rule_says_on_paper(case: Case, full: Trial) -> None:
    for params in BASELINES["TaylorSeer lite"].propose(case):
        plan = planned_steps(taylorseer.policy_of(params, STEPS), STEPS)
        assert calls(by(case, "TaylorSeer lite", params), full) == pytest.approx(len(plan))


def test_first_block_cache_with_a_wide_threshold_computes_one_block_a_step(case: Case, full: Trial) -> None:
    with MacCounter(case.pipe) as counter:
        CALL(case.pipe, PROMPTS[:1])
    made = by(case, "FirstBlockCache", {"threshold": 1e9})
    assert full.work / STEPS < made.work < full.work / 2  # one whole call, and the first block of the others
    assert counter.work == full.work and len(blocks_of(case.pipe.transformer)) == 4


def test_a_line_through_two_outputs_is_one_step_of_adams_bashforth(case: Case) -> None:
    """On an even grid of the call's own: x + h (3 u1 - u0) / 2."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    class Watched(MultistepHook):
        def model_output(self, step: SchedulerStep) -> torch.Tensor:
            if step.computed:
                seen.append((step.x.clone(), step.u.clone()))
            return super().model_output(step)

    made = run_trial(case.setup, PROMPTS[:1], Watched(2, [0, 2, 4, 6]))
    case.pipe.scheduler.set_timesteps(STEPS, sigmas=[1 - i / STEPS for i in range(STEPS)])
    s = case.pipe.scheduler.sigmas[[0, 2, 4, 6, 8]]
    (_, before), (x, u) = seen[-2:]
    slope = (u - before) / (s[3] - s[2])
    last = x + (s[4] - s[3]) * (u + (s[4] - s[3]) / 2 * slope)
    assert torch.allclose(made.latents[0], last, atol=1e-5)


def test_a_missing_package_is_a_row_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(BASELINES["DBCache"]), "package", "no-such-package")
    result = compared([0.5], ["DBCache"], 1, 1)
    (one,) = [one for one in result.results if one.method == "DBCache"]
    assert "pip install no-such-package" in one.note and one.psnr is None


def test_our_schedule_and_its_peers_stay_at_or_below_the_budget() -> None:
    result = compared(
        [0.5], ["adaptcache", "fewer steps", "MagCache"], batch_size=3, sweep_on=1, refine=4,
        caption_score=lambda prompts, images: len(images) / 4,
    )  # fmt: skip
    results = {one.method: one for one in result.results}
    assert set(results) == {"full run", "adaptcache", "fewer steps", "MagCache"}
    assert results["full run"].calls == STEPS and results["full run"].latent == 0
    assert all(one.calls is not None and one.calls <= STEPS / 2 for n, one in results.items() if n != "full run")
    assert results["adaptcache"].blocks == pytest.approx(results["adaptcache"].calls * 2)
    assert len(result.images["MagCache 0.5"]) == 2
    evidence = result.schedules[0.5].evidence
    assert evidence and evidence.psnr == results["adaptcache"].psnr and evidence.n == 2
    assert result.data()["lines"][0]["method"] == "full run"
    assert results["adaptcache"].caption_score == 0.5 and len(results["adaptcache"].each) == 2
    assert results["fewer steps"].lead["mean"] == pytest.approx(
        np.mean(np.subtract(results["adaptcache"].each, results["fewer steps"].each))
    )
    # nearer to the exact solution than to what half the steps make of it
    assert results["full run"].exact and results["fewer steps"].exact
    assert results["full run"].exact["mean"] > results["fewer steps"].exact["mean"]


def test_a_lead_has_a_95_percent_interval_over_prompts() -> None:
    lead = lead_over([31.0, 33.0, 35.0, 37.0], [30.0, 30.0, 30.0, 30.0])
    assert lead["mean"] == 4 and lead["ci95"] == pytest.approx(3.182 * 2.582 / 2, rel=1e-3)  # t of 3 degrees
    assert lead_over([31.0], [30.0]) == {"mean": 1.0, "ci95": None}


def test_unknown_methods_are_refused_with_those_there_are() -> None:
    with pytest.raises(LookupError, match="no method TeaCash; there are adaptcache, fewer steps"):
        module.find_methods(["TeaCash"])


def test_latent_error_is_relative_to_the_length_of_the_full_run(full: Trial) -> None:
    off = [1.1 * value for value in full.latents]
    assert latent_error(off, full.latents) == pytest.approx(0.1, rel=1e-4)


def test_what_was_fitted_cost_what_the_runs_add_up_to() -> None:
    """Three full runs; the sensitivity of step k takes the steps after it and the first, on 2 prompts."""
    result = compared([0.5], ["adaptcache", "fewer steps", "L2P", "TeaCache"], batch_size=3, sweep_on=1)
    cost = {cost.method: cost for cost in result.costs}
    ours = cost["adaptcache"].calibration
    assert ours["full runs"] == pytest.approx(3 * STEPS)
    assert ours["sensitivity of each step"] == pytest.approx(2 * sum(STEPS - k for k in range(1, STEPS)))
    assert ours["matching"] > 0 and ours["matching"] % (3 * STEPS / 2) == pytest.approx(0)  # some plans
    assert cost["L2P"].calibration == {name: ours[name] for name in ("full runs", "sensitivity of each step")}
    assert cost["TeaCache"].calibration["calibration"] == pytest.approx(STEPS, rel=0.05)
    assert cost["fewer steps"].calibration == {} and cost["fewer steps"].settings == STEPS / 2
    assert [cost["L2P"].tried, cost["adaptcache"].settings] == [6, 0]


def test_memory_is_that_of_the_outputs_a_forecast_keeps(case: Case) -> None:
    size = CALL(case.pipe, PROMPTS[:1]).nbytes
    full = measure_memory(case.setup, PROMPTS[:1])

    def more(name: str, params: Any) -> int:
        with BASELINES[name].apply(case, params) as ready:
            return measure_memory(replace(case.setup, call=ready.call), PROMPTS[:1], ready.hook) - full

    for order in (1, 2):
        params = {"cache_interval": 2, "disable_cache_before_step": 1, "max_order": order}
        assert order * size <= more("TaylorSeer lite", params) <= (order + 1) * size
    # three outputs, the first latents, what the gate hands out meanwhile
    assert 3 * size <= more("L2P", {"plan": [0, 1, 2, 5], "history": 3}) <= 6 * size


def test_views_weigh_once() -> None:
    whole = torch.zeros(10)
    assert sum(storages(iter([whole, whole[:5], whole.view(2, 5)])).values()) == 40


def test_settings_between_two_on_both_sides_of_a_budget_are_tried_next() -> None:
    tried = [(8.0, 0.1, 1), (5.0, 0.4, 1), (2.0, 1.6, 1), (3.0, 0.1, 2)]
    found = [(calls, {"t": t, "w": w}) for calls, t, w in tried]
    assert settings_between(found, "t", [6]) == [{"t": 0.2, "w": 1}]
    assert settings_between(found, "t", [6, 4]) == [{"t": 0.2, "w": 1}, {"t": 0.8, "w": 1}]
    assert settings_between(found, "t", [1, 9]) == []


def test_finer_settings_come_nearer_to_the_budget(case: Case) -> None:
    runner = ComparisonRunner(case, PROMPTS[:1])
    found, cost = runner.choose_settings(BASELINES["EasyCache"], [4, 2])
    coarse = len(BASELINES["EasyCache"].propose(case))
    assert cost.tried == len(found) > coarse
    assert cost.settings == pytest.approx(sum(one.calls for one in found))


def test_the_baseline_gets_all_the_calls_there_are_and_others_what_is_best(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = ComparisonRunner(case, PROMPTS[:1])
    steps = [{"steps": count, "solver_order": 2} for count in (2, 4)]  # fewer did better, by chance
    found = [Tried(2.0, 2.0, 50.0, steps[0]), Tried(4.0, 4.0, 40.0, steps[1])]
    monkeypatch.setattr(ComparisonRunner, "choose_settings", lambda self, baseline, budgets: (found, None))
    for name, wanted in (("fewer steps", steps[1]), ("UniPC", steps[0])):
        (one,), _ = runner.measure(BASELINES[name], {0.5: 4})
        assert one.params == wanted


def test_a_setting_over_its_budget_on_held_out_prompts_gives_way_to_one_below(case: Case) -> None:
    runner = ComparisonRunner(case, PROMPTS[:1])
    lies = [Tried(3.0, 3.0, 60.0, {"steps": 6}), Tried(2.0, 2.0, 30.0, {"steps": 2})]
    one = runner.measure_best(BASELINES["fewer steps"], 0.5, 4, lies, True)
    assert one.params == {"steps": 2} and one.over_budget == (6.0,) and one.calls == 2
    one = runner.measure_best(BASELINES["fewer steps"], 0.5, 4, lies[:1], True)
    assert one.psnr is None and "over budget on the held-out prompts: 4 calls; the least is 6.0" in one.note


def test_annealing_finds_the_best_plan_of_a_small_grid() -> None:
    wanted = {0, 1, 4, 7}
    plan = anneal(10, 4, lambda plan: len(wanted - set(plan)) / 10, trials=200)
    assert set(plan) == wanted and plan == sorted(plan)


@pytest.mark.parametrize("calls", [1, 2, 5, 9])
def test_even_plans_have_as_many_steps_as_asked_for(calls: int) -> None:
    assert len(even_steps(9, calls)) == calls and even_steps(9, calls)[0] == 0


def test_a_method_that_breaks_is_a_row_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(case: Case) -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(BASELINES["MagCache"], "propose", broken)
    results = {one.method: one for one in compared([0.5], ["MagCache", "fewer steps"], 1, 1).results}
    assert results["MagCache"].note == "broke: RuntimeError: no such kernel" and results["fewer steps"].psnr


def test_guidance_with_two_calls_is_no_case_for_caches_of_attention(case: Case) -> None:
    assert case.branches == 1 and BASELINES["PAB"].find_obstacle(case) is None
    other = embedded(1, seed=9)[0]
    negative = {f"negative_{name}": value for name, value in other.items()}
    call = replace(case.setup.call, pipe_kwargs={**ARGUMENTS, "true_cfg_scale": 2.0})
    prompts = PromptSet.of([{**PROMPTS.prompts[0], **negative}])
    guided = replace(case, setup=replace(case.setup, call=call), prompts=prompts)
    assert guided.branches == 2 and "2 denoiser calls" in str(BASELINES["PAB"].find_obstacle(guided))


def test_random_samplers_have_no_exact_solution() -> None:
    import diffusers

    assert module.why_never_exact(diffusers.FlowMatchEulerDiscreteScheduler()) is None
    assert module.why_never_exact(diffusers.DPMSolverMultistepScheduler()) is None
    sde = diffusers.DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++")
    for scheduler in (sde, diffusers.EulerAncestralDiscreteScheduler(), diffusers.LCMScheduler()):
        assert "draws noise" in str(module.why_never_exact(scheduler))


def test_calibrated_teacache_watches_every_step_and_both_changes(case: Case) -> None:
    settings = BASELINES["TeaCache"].propose(case)
    assert {len(params["coefficients"]) for params in settings} == {5}
    all_of_it = by(case, "TeaCache", {**settings[-1], "threshold": 0.0})
    few = by(case, "TeaCache", {**settings[-1], "threshold": 100.0})
    full = run_trial(case.setup, PROMPTS[:1])
    assert torch.equal(all_of_it.latents[0], full.latents[0])
    assert 2 <= calls(few, full) < 2.2  # the first and the last step; the first block's modulation always


def test_batches_change_nothing_but_the_time(case: Case) -> None:
    one, two = (run_trial(replace(case.setup, batch_size=size), PROMPTS) for size in (1, 2))
    assert one.latents[0].shape == two.latents[0].shape and len(one.images) == 2
    assert torch.allclose(one.latents[0], two.latents[0], atol=1e-5) and one.work == two.work
    assert math.isclose(latent_error(one.latents, two.latents), 0, abs_tol=1e-5)
    assert np.allclose(one.images[1], two.images[1], atol=1e-4)
