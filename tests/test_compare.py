"""Comparisons on a tiny real pipeline: every method makes the calls it says, from the same noise."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import STEPS, embedded, tiny_flux

import adaptcache
from adaptcache.calibration.search import EFFORT
from adaptcache.comparison import compare as comparison
from adaptcache.comparison.baselines import BASELINES, Case, Ready, samplers, zoo
from adaptcache.comparison.baselines.base import even_steps, planned_steps
from adaptcache.comparison.baselines.caches import magcache_policy, taylorseer_policy
from adaptcache.comparison.baselines.samplers import AlignYourSteps, MultistepHook, search_levels, stretch
from adaptcache.comparison.baselines.zoo import anneal
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
from adaptcache.evaluation.generate import run_latents
from adaptcache.hooks import StepHook
from adaptcache.profiling.measure import measure
from adaptcache.runs import PipelineCall, PromptSet, Setup

PROMPTS = PromptSet(tuple(embedded(2)))
SIZE = {"height": 16, "width": 16}


def setup_of(pipe: Any, **more: Any) -> Setup:
    return Setup(DiffusersEngine(pipe, exclusive=True), PipelineCall(STEPS, SIZE), **more)


def compared(methods: list[str], budgets: tuple[float, ...] = (0.5,), prompts: int = 1, **more: Any) -> Any:
    held_out = embedded(more.pop("eval_prompts", 1), seed=5)
    return comparison.compare(
        tiny_flux(), embedded(prompts), held_out, budgets, STEPS, methods=methods, progress=False, **SIZE, **more
    )


@pytest.fixture(scope="module")
def profile() -> Any:
    return measure(setup_of(tiny_flux(num_layers=2, num_single_layers=2)), PROMPTS[:1]).profile


@pytest.fixture
def case(profile: Any, monkeypatch: pytest.MonkeyPatch) -> Case:
    monkeypatch.setattr(zoo, "TRIALS", 4)
    monkeypatch.setattr(samplers, "FULL_RUNS", 6)
    pipe = twin(tiny_flux(num_layers=2, num_single_layers=2))
    return Case(setup_of(pipe), PROMPTS[:1], (4, 2), {4: [0, 1, 3, 5], 2: [0, 3]}, profile)


@pytest.fixture
def full(case: Case) -> Trial:
    return run_trial(case.setup, PROMPTS[:1])


def run(case: Case, name: str, params: Any) -> Trial:
    with BASELINES[name].apply(case, params) as ready:
        return run_trial(replace(case.setup, call=ready.call), PROMPTS[:1], ready.hook)


def calls(trial: Trial, full: Trial) -> float:
    return STEPS * trial.work / full.work


def baselines(*names: str) -> list[Any]:
    here = importlib.util.find_spec("cache_dit") is not None
    skip = pytest.mark.skipif(not here, reason="cache-dit is not installed")
    return [pytest.param(n, marks=skip if BASELINES[n].package == "cache-dit" else ()) for n in names]


@pytest.mark.skipif(importlib.util.find_spec("cache_dit") is None, reason="cache-dit is not installed")
def test_what_runs_after_cache_dit_runs_as_before_it(case: Case) -> None:
    params = {
        "threshold": 0.5, "max_skip_steps": STEPS, "retention_ratio": 0.0, "num_inference_steps": STEPS,
        "mag_ratios": [2.0 if i % 2 == 0 else 1.0 for i in range(STEPS)],
    }  # fmt: skip
    before = run(case, "MagCache", params)
    run(case, "DBCache", {"residual_diff_threshold": 0.2, "max_warmup_steps": 1})
    after = run(case, "MagCache", params)
    assert all(torch.equal(a, b) for a, b in zip(before.latents, after.latents, strict=True))


@pytest.mark.parametrize("name", baselines(*BASELINES))
def test_every_method_starts_from_the_same_noise_and_leaves_the_pipeline_as_it_was(
    case: Case, full: Trial, name: str
) -> None:
    if obstacle := BASELINES[name].find_obstacle(case):
        assert name in ("SeaCache", "AYS") and "FluxPipeline" in obstacle
        return
    scheduler = case.pipe.scheduler
    for params in BASELINES[name].propose(case)[:2]:
        made = run(case, name, params)
        assert all(torch.equal(a, b) for a, b in zip(made.noise, full.noise, strict=True))
        assert calls(made, full) <= STEPS * 1.01  # TeaCache's signal costs a little at every step
    again = run_trial(case.setup, PROMPTS[:1])
    assert torch.equal(again.latents[0], full.latents[0]) and again.work == full.work
    assert case.pipe.scheduler is scheduler


@pytest.mark.parametrize("name", ["fewer steps", "AB2", "UniPC", "DPM++ 2M", "AB3 (searched)"])
def test_samplers_make_one_call_a_step(case: Case, full: Trial, name: str) -> None:
    for params in BASELINES[name].propose(case):
        made = run(case, name, params)
        assert made.steps == params.get("steps") or made.steps in map(len, params.values())
        assert calls(made, full) == pytest.approx(made.steps)


def test_magcache_computes_the_steps_its_policy_says(case: Case, full: Trial) -> None:
    settings = BASELINES["MagCache"].propose(case)
    assert settings
    for params in settings:
        plan = planned_steps(magcache_policy(params), STEPS)
        assert calls(run(case, "MagCache", params), full) == pytest.approx(len(plan))


def test_taylorseer_lite_computes_the_steps_its_policy_says(case: Case, full: Trial) -> None:
    settings = BASELINES["TaylorSeer lite"].propose(case)
    ends = {params.get("disable_cache_after_step") for params in settings}
    assert {None, STEPS - 1} <= ends  # swept, as the last steps matter
    assert max(len(planned_steps(taylorseer_policy(params, STEPS), STEPS)) for params in settings) <= 4
    for params in settings[:: len(settings) // 6]:
        plan = planned_steps(taylorseer_policy(params, STEPS), STEPS)
        assert calls(run(case, "TaylorSeer lite", params), full) == pytest.approx(len(plan))


def test_first_block_cache_with_a_wide_threshold_computes_one_block_a_step(case: Case, full: Trial) -> None:
    with MacCounter(case.pipe) as counter:
        run_latents(case.setup, PROMPTS[:1])
    made = run(case, "FirstBlockCache", {"threshold": 1e9})
    assert full.work / STEPS < made.work < full.work / 2  # one whole call, and the first block of the others
    assert counter.work == full.work and len(blocks_of(case.pipe.transformer)) == 4
    assert made.probe == full.probe  # without its probe it made one call
    assert (made.work - made.probe) * STEPS == pytest.approx(full.work - full.probe)


def test_the_multistep_hook_takes_steps_of_adams_bashforth(case: Case) -> None:
    """On an even grid of the call's own: x + h (3 u1 - u0) / 2."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    class Watched(MultistepHook):
        def model_output(self, step: Any) -> torch.Tensor:
            if step.computed:
                seen.append((step.x.clone(), step.u.clone()))
            return super().model_output(step)

    (made,) = run_latents(case.setup, PROMPTS[:1], Watched(2, [0, 2, 4, 6]))
    case.pipe.scheduler.set_timesteps(8, sigmas=[1 - i / 8 for i in range(8)])
    s = case.pipe.scheduler.sigmas[[0, 2, 4, 6, 8]]
    (_, before), (x, u) = seen[-2:]
    slope = (u - before) / (s[3] - s[2])
    last = x + (s[4] - s[3]) * (u + (s[4] - s[3]) / 2 * slope)
    assert torch.allclose(made, last, atol=1e-5)


def test_a_run_at_given_levels_steps_through_these_levels(case: Case) -> None:
    class Levels(StepHook):
        def on_run_start(self, times: tuple[float, ...]) -> None:
            self.times = times

    for name in ("Euler (searched)", "DPM++ 2M (searched)"):
        levels, hook = [0.999, 0.8, 0.37, 0.123], Levels()
        with BASELINES[name].apply(case, {"levels": levels}) as ready:
            run_latents(replace(case.setup, call=ready.call), PROMPTS[:1], hook)
        assert hook.times == pytest.approx(levels, abs=1e-6)


def test_the_search_for_levels_finds_those_that_an_error_hides_and_keeps_to_its_runs() -> None:
    hidden, made = np.array([1.0, 0.7, 0.45, 0.2]), []

    def error(levels: Any) -> float:
        made.append(levels)
        return float(np.linalg.norm(np.array(levels) - hidden))

    start = [1.0, 0.75, 0.5, 0.25]
    assert search_levels([[1.0, 0.9, 0.5, 0.3], start], error, 200) == pytest.approx(hidden, abs=0.01)
    assert len(made) == 200 and all(levels[0] == 1 and np.all(np.diff(levels) < 0) for levels in made)
    assert search_levels([start], error, 1) == start and len(made) == 201
    assert search_levels([[1.0]], lambda levels: 0.0, 9) == [1.0]  # one call: nothing to search


def test_searched_levels_end_no_farther_from_the_full_run_than_the_samplers_own(case: Case) -> None:
    full = run_latents(case.setup, case.prompts)
    for name in ("Euler (searched)", "AB2 (searched)"):
        errors = []
        for params in BASELINES[name].propose(case)[:2]:
            with BASELINES[name].apply(case, params) as ready:
                made = run_latents(replace(case.setup, call=ready.call), case.prompts, ready.hook)
            errors.append(latent_error(made, full))
        assert errors[0] <= errors[1] * 1.0001


def test_published_grids_are_found_by_the_pipeline_and_stretched(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.pipelines.unet import UNET

    made = UNET["Stable Diffusion 1.5"]()
    made.pipe.set_progress_bar_config(disable=True)
    setup = Setup(DiffusersEngine(made.pipe, exclusive=True), PipelineCall(20, made.call))
    case, method = Case(setup, PromptSet(tuple(made.prompts[:1])), (10, 5)), AlignYourSteps()
    assert method.find_obstacle(case) is None
    settings = method.propose(case)
    assert settings[0]["timesteps"] == [999, 850, 736, 645, 545, 455, 343, 233, 124, 24]
    assert len(settings[-1]["timesteps"]) == 5 and settings[-1]["timesteps"][::4] == [999, 24]
    for params in settings:
        with method.apply(case, params) as ready:
            assert run_trial(replace(setup, call=ready.call), case.prompts, ready.hook).steps == params["steps"]
    assert stretch([0.0, 1.0, 4.0], 5).tolist() == [0, 0.5, 1, 2.5, 4]


def test_a_missing_package_is_a_row_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(BASELINES["DBCache"]), "package", "no-such-package")
    (result,) = [one for one in compared(["DBCache"]).results if one.method == "DBCache"]
    assert "pip install no-such-package" in result.note and result.psnr is None


def test_our_schedule_and_the_baselines_stay_at_or_below_the_budget() -> None:
    result = compared(
        ["adaptcache", "fewer steps", "MagCache"], prompts=3, eval_prompts=2, batch_size=3, refine=4,
        caption_score=lambda prompts, images: len(images) / 4,
    )  # fmt: skip
    assert result.swept == 3  # settings are chosen on as many prompts as schedules are fitted on
    rows = {one.method: one for one in result.results}
    assert set(rows) == {"full run", "adaptcache", "fewer steps", "MagCache"}
    assert rows["full run"].calls == STEPS and rows["full run"].latent == 0
    assert all(one.calls is not None and one.calls <= STEPS / 2 for n, one in rows.items() if n != "full run")
    assert rows["adaptcache"].blocks == pytest.approx(rows["adaptcache"].calls * 2)
    assert len(result.images["MagCache 0.5"]) == 2
    evidence = result.schedules[0.5].evidence
    assert evidence and evidence.psnr == rows["adaptcache"].psnr and evidence.n == 2
    lines = result.data()["lines"]
    assert lines[0]["method"] == "full run" and lines[1]["knobs"]["plan"] and lines[1]["shown"] == 0.5
    assert rows["adaptcache"].caption_score == 0.5 and len(rows["adaptcache"].each) == 2
    # nearer to the exact solution than to what half the steps make of it
    assert rows["full run"].exact and rows["fewer steps"].exact
    assert rows["full run"].exact["mean"] > rows["fewer steps"].exact["mean"]
    gap = rows["adaptcache"].psnr["mean"] - rows["fewer steps"].psnr["mean"]
    assert rows["fewer steps"].lead["mean"] == pytest.approx(gap) and rows["fewer steps"].lead["ci95"] > 0
    assert rows["adaptcache"].lead is None and rows["full run"].lead is None


def test_a_lead_has_the_interval_of_a_paired_t_test() -> None:
    lead = lead_over([3.0, 5.0, 4.0], [1.0, 1.0, 1.0])  # 2, 4, 3: mean 3, deviation 1
    assert lead == {"mean": 3.0, "ci95": pytest.approx(4.303 / math.sqrt(3), rel=1e-3)}
    assert lead_over([3.0], [1.0]) == {"mean": 2.0, "ci95": None}


def test_unknown_methods_and_options_are_refused() -> None:
    with pytest.raises(LookupError, match="no method 'TeaCash'; did you mean TeaCache"):
        compared(["TeaCash"])
    with pytest.raises(TypeError, match="compare takes no finest"):
        compared(["fewer steps"], finest=3)


def test_the_public_function_is_this_one() -> None:
    assert adaptcache.compare.__wrapped__ is comparison.compare


def test_latent_error_is_relative_to_the_length_of_the_full_run(full: Trial) -> None:
    off = [1.1 * value for value in full.latents]
    assert latent_error(off, full.latents) == pytest.approx(0.1, rel=1e-4)


def test_what_was_fitted_cost_what_the_runs_add_up_to() -> None:
    """Three full runs; the sensitivity of step k takes the steps after it and the first, on 2 prompts."""
    result = compared(["adaptcache", "fewer steps", "L2P", "TeaCache"], prompts=3, batch_size=3, sweep_on=1)
    cost = {cost.method: cost for cost in result.costs}
    ours = cost["adaptcache"].calibration
    assert ours["full runs"] == pytest.approx(3 * STEPS)
    assert ours["sensitivity of each step"] == pytest.approx(2 * sum(STEPS - k for k in range(1, STEPS)))
    assert 0 < ours["searching"] <= EFFORT * STEPS
    assert 3 * STEPS / 2 <= ours["matching"] + 1e-6 and ours["matching"] <= 3 * STEPS + 1e-6  # of one plan or two
    profiled = ("full runs", "sensitivity of each step", "reading the sampler")
    assert cost["L2P"].calibration == {name: ours[name] for name in profiled}
    assert cost["TeaCache"].calibration["calibration"] == pytest.approx(STEPS, rel=0.05)
    assert cost["fewer steps"].calibration == {} and cost["fewer steps"].settings == STEPS / 2
    assert [cost["L2P"].tried, cost["adaptcache"].settings] == [6, 0]


def test_a_search_for_levels_costs_no_more_than_its_runs(case: Case) -> None:
    runner = ComparisonRunner(case, PROMPTS[1:])
    found, cost = runner.choose_settings(BASELINES["AB2 (searched)"], [4, 2])
    full, own = 1 + samplers.FULL_RUNS * 2, (STEPS + 4 + 2) / STEPS
    assert STEPS * 4 < cost.calibration["calibration"] <= STEPS * (full + own) and len(found) == 4


def test_memory_is_that_of_the_outputs_a_forecast_keeps(case: Case, full: Trial) -> None:
    size = full.latents[0].nbytes
    least = measure_memory(case.setup, PROMPTS[:1])

    def more(name: str, params: Any) -> int:
        with BASELINES[name].apply(case, params) as ready:
            return measure_memory(case.setup, PROMPTS[:1], ready.hook) - least

    for order in (1, 2):
        params = {"cache_interval": 2, "disable_cache_before_step": 1, "max_order": order}
        assert order * size <= more("TaylorSeer lite", params) <= (order + 1) * size
    # three outputs, the first latents, what the gate returns meanwhile
    assert 3 * size <= more("L2P", {"plan": [0, 1, 2, 5], "history": 3}) <= 6 * size


def test_views_weigh_once() -> None:
    whole = torch.zeros(10)
    assert sum(storages([whole, whole[:5], whole.view(2, 5)]).values()) == 40


def test_settings_between_two_on_both_sides_of_a_budget_are_tried_next() -> None:
    tried = [(8.0, 0.1, 1), (5.0, 0.4, 1), (2.0, 1.6, 1), (3.0, 0.1, 2)]
    found = [(calls, {"t": t, "w": w}) for calls, t, w in tried]
    assert settings_between(found, "t", [6]) == [{"t": 0.2, "w": 1}]
    assert settings_between(found, "t", [6, 4]) == [{"t": 0.2, "w": 1}, {"t": 0.8, "w": 1}]
    assert settings_between(found, "t", [1, 9]) == []


def test_finer_settings_come_nearer_to_the_budget(case: Case) -> None:
    runner = ComparisonRunner(case, PROMPTS[1:])
    found, cost = runner.choose_settings(BASELINES["EasyCache"], [4, 2])
    coarse = len(BASELINES["EasyCache"].propose(case))
    assert cost.tried == len(found) > coarse
    assert cost.settings == pytest.approx(sum(one.calls for one in found))


def tried(*found: tuple[float, float, Any], unprobed: float = 0.0) -> list[Tried]:
    return [Tried(calls, calls - unprobed, quality, params) for calls, quality, params in found]


def test_fewer_steps_get_all_the_calls_there_are_and_others_what_is_best(case: Case) -> None:
    runner = ComparisonRunner(case, PROMPTS[:1])
    steps = [{"steps": count, "solver_order": 2} for count in (2, 4)]  # fewer did better, by chance
    found = tried((2.0, 50.0, steps[0]), (4.0, 40.0, steps[1]))
    for name, wanted in (("fewer steps", steps[1]), ("UniPC", steps[0])):
        assert runner.measure_best(BASELINES[name], 0.5, 4, found).params == wanted


def test_a_setting_over_budget_on_held_out_prompts_gives_way_to_the_next_one(case: Case) -> None:
    runner = ComparisonRunner(case, PROMPTS[:1])
    few, many = {"steps": 3}, {"steps": 6}
    found = tried((3.9, 50.0, many), (3.9, 45.0, many), (3.0, 40.0, few))  # it makes six, not 3.9
    result = runner.measure_best(BASELINES["fewer steps"], 0.5, 4, found)
    assert result.params == few and result.over_budget == (6.0,) and result.calls == 3
    result = runner.measure_best(BASELINES["fewer steps"], 0.5, 4, found[:1])
    assert result.psnr is None and "over budget on the held-out prompts: 4 calls; the least is 6.0" in result.note
    result = runner.measure_best(BASELINES["fewer steps"], 0.25, 2, found)
    assert result.note == "no setting at or below 2 calls; the least is 3.0" and result.tried == 3


def test_a_method_with_a_probe_is_measured_with_it_counted_and_not_counted(case: Case) -> None:
    runner = ComparisonRunner(case, PROMPTS[:1])
    results, _ = runner.measure(BASELINES["FirstBlockCache"], {0.5: 4})
    share = runner.full.probe / runner.full.work  # one block of four
    names = [one.method for one in results]
    assert names in (["FirstBlockCache"], ["FirstBlockCache", "FirstBlockCache (probe not counted)"])
    for one, free in zip(results, (False, True), strict=False):
        assert one.calls > one.unprobed and (one.unprobed if free else one.calls) <= 4 * 1.01
        assert one.calls == pytest.approx(STEPS * share + one.unprobed * (1 - share))


def test_times_are_those_of_runs_in_turn(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    from adaptcache.comparison import runner as module

    order: list[str] = []

    class Slow(StepHook):
        pass

    def time_loop(setup: Setup, batch: PromptSet, hook: Any = None) -> float:
        order.append("method" if hook else "full")
        return 3.0 if hook is None else [1.0, 2.0, 30.0][order.count("method") - 1]

    class Method(type(BASELINES["fewer steps"])):  # type: ignore[misc]
        def apply(self, case: Case, params: Any) -> Any:
            from contextlib import nullcontext

            return nullcontext(Ready(case.setup.call, Slow()))

    monkeypatch.setattr(module, "time_loop", time_loop)
    assert ComparisonRunner(case, PROMPTS[:1]).time_pairs(Method(), {}) == 1.5  # of 3, 1.5 and 0.1
    assert order == ["full", "method"] * 3


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
    rows = {one.method: one for one in compared(["MagCache", "fewer steps"]).results}
    assert rows["MagCache"].note == "broke: RuntimeError: no such kernel" and rows["fewer steps"].psnr


def test_guidance_with_two_calls_is_no_case_for_caches_of_attention(case: Case) -> None:
    assert case.branches == 1 and BASELINES["PAB"].find_obstacle(case) is None
    other = embedded(1, seed=9)[0]
    negative = {f"negative_{name}": value for name, value in other.items()}
    call = PipelineCall(STEPS, {**SIZE, "true_cfg_scale": 2.0})
    guided = replace(case, setup=replace(case.setup, call=call), prompts=PromptSet(({**PROMPTS[0], **negative},)))
    assert guided.branches == 2 and "2 denoiser calls" in str(BASELINES["PAB"].find_obstacle(guided))


def test_random_samplers_have_no_exact_solution() -> None:
    import diffusers

    assert comparison.why_never_exact(diffusers.FlowMatchEulerDiscreteScheduler()) is None
    assert comparison.why_never_exact(diffusers.DPMSolverMultistepScheduler()) is None
    sde = diffusers.DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++")
    for scheduler in (sde, diffusers.EulerAncestralDiscreteScheduler(), diffusers.LCMScheduler()):
        assert "draws noise" in str(comparison.why_never_exact(scheduler))


def test_calibrated_teacache_watches_every_step_and_both_changes(case: Case, full: Trial) -> None:
    settings = BASELINES["TeaCache"].propose(case)
    assert {len(params["coefficients"]) for params in settings} == {5}
    all_of_it = run(case, "TeaCache", {**settings[-1], "threshold": 0.0})
    few = run(case, "TeaCache", {**settings[-1], "threshold": 100.0})
    assert torch.equal(all_of_it.latents[0], full.latents[0])
    assert 2 <= calls(few, full) < 2.2  # the first and the last step; the first block's modulation always


def test_batches_change_nothing_but_the_time(case: Case) -> None:
    one, two = (run_trial(replace(case.setup, batch_size=size), PROMPTS) for size in (1, 2))
    assert one.latents[0].shape == two.latents[0].shape and len(one.images) == 2
    assert torch.allclose(one.latents[0], two.latents[0], atol=1e-5) and one.work == two.work
    assert math.isclose(latent_error(one.latents, two.latents), 0, abs_tol=1e-5)
    assert np.allclose(one.images[1], two.images[1], atol=1e-4)
