"""Comparisons on a tiny real pipeline: every method makes the calls it says, from the same noise."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from adaptcache.comparison.bench import Bench
from adaptcache.comparison.solution import no_solution
from adaptcache.comparison.sweep import between
from conftest import CALL, STEPS, embedded, tiny_flux

from adaptcache import comparison as module
from adaptcache.comparison.baselines import PEERS, annealing
from adaptcache.comparison.baselines.annealing import annealed
from adaptcache.comparison.baselines.base import Case
from adaptcache.comparison.baselines.magcache import followed
from adaptcache.comparison.baselines.taylorseer import computed
from adaptcache.comparison.baselines.zoo import even
from adaptcache.comparison.trial import BlockCounter, Trial, blocks_of, kept, latent_error, run, storages
from adaptcache.engines.diffusers.engine import twin
from adaptcache.profiling.measure import measure

PROMPTS = embedded(2)


@pytest.fixture(scope="module")
def profile() -> Any:
    return measure(tiny_flux(num_layers=2, num_single_layers=2), CALL, PROMPTS[:1]).profile


@pytest.fixture
def case(profile: Any, monkeypatch: pytest.MonkeyPatch) -> Case:
    monkeypatch.setattr(annealing, "TRIALS", 4)
    pipe = tiny_flux(num_layers=2, num_single_layers=2)
    return Case(twin(pipe), CALL, (4, 2), PROMPTS[:1], {4: [0, 1, 3, 5], 2: [0, 3]}, profile)


@pytest.fixture
def full(case: Case) -> Trial:
    return run(case.pipe, CALL, PROMPTS[:1])


def by(case: Case, name: str, knobs: Any) -> Trial:
    with PEERS[name].applied(case, knobs) as ready:
        return run(case.pipe, ready.call, PROMPTS[:1], ready.visitor)


def calls(trial: Trial, full: Trial) -> float:
    return STEPS * trial.work / full.work


def peers(*names: str) -> list[Any]:
    here = importlib.util.find_spec("cache_dit") is not None
    skip = pytest.mark.skipif(not here, reason="cache-dit is not installed")
    return [pytest.param(n, marks=skip if PEERS[n].needs == "cache-dit" else ()) for n in names]


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


@pytest.mark.parametrize("name", peers(*PEERS))
def test_every_method_starts_from_the_same_noise_and_leaves_the_pipeline_as_it_was(
    case: Case, full: Trial, name: str
) -> None:
    if why := PEERS[name].missing(case):
        assert name == "SeaCache" and "FluxPipeline" in why
        return
    for knobs in PEERS[name].settings(case)[:2]:
        made = by(case, name, knobs)
        assert all(torch.equal(a, b) for a, b in zip(made.noise, full.noise, strict=True))
        assert calls(made, full) <= STEPS * 1.01  # TeaCache's signal costs a little at every step
    again = run(case.pipe, CALL, PROMPTS[:1])
    assert torch.equal(again.latents[0], full.latents[0]) and again.work == full.work


@pytest.mark.parametrize("name", ["fewer steps", "AB2", "UniPC", "DPM++ 2M"])
def test_samplers_make_one_call_a_step(case: Case, full: Trial, name: str) -> None:
    for knobs in PEERS[name].settings(case):
        made = by(case, name, knobs)
        assert made.steps == knobs.get("steps", len(knobs.get("plan", ())))
        assert calls(made, full) == pytest.approx(made.steps)


def test_magcache_computes_the_steps_its_rule_says_on_paper(case: Case, full: Trial) -> None:
    settings = PEERS["MagCache"].settings(case)
    assert settings
    for knobs in settings:
        plan = followed(
            knobs["mag_ratios"], knobs["threshold"], knobs["max_skip_steps"], knobs["retention_ratio"]
        )
        assert calls(by(case, "MagCache", knobs), full) == pytest.approx(len(plan))


def test_taylorseer_lite_computes_the_steps_its_rule_says_on_paper(case: Case, full: Trial) -> None:
    for knobs in PEERS["TaylorSeer lite"].settings(case):
        plan = computed(STEPS, knobs["cache_interval"], knobs["disable_cache_before_step"])
        assert calls(by(case, "TaylorSeer lite", knobs), full) == pytest.approx(len(plan))


def test_first_block_cache_with_a_wide_threshold_computes_one_block_a_step(case: Case, full: Trial) -> None:
    with BlockCounter(case.pipe) as counter:
        case.call(case.pipe, PROMPTS[:1])
    made = by(case, "FirstBlockCache", {"threshold": 1e9})
    assert full.work / STEPS < made.work < full.work / 2  # one whole call, and the first block of the others
    assert counter.work == full.work and len(blocks_of(case.pipe.transformer)) == 4


def test_a_line_through_two_outputs_is_one_step_of_adams_bashforth(case: Case) -> None:
    """On an even grid of the call's own: x + h (3 u1 - u0) / 2."""
    from adaptcache.comparison.baselines.samplers import Line
    from adaptcache.hooks import Update

    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    class Watched(Line):
        def update(self, update: Update) -> torch.Tensor:
            if update.computed:
                seen.append((update.move.x.clone(), update.move.u.clone()))
            return super().update(update)

    made = run(case.pipe, replace(CALL, steps=8), PROMPTS[:1], Watched([0, 2, 4, 6]))
    case.pipe.scheduler.set_timesteps(8, sigmas=[1 - i / 8 for i in range(8)])
    s = case.pipe.scheduler.sigmas[[0, 2, 4, 6, 8]]
    (_, before), (x, u) = seen[-2:]
    slope = (u - before) / (s[3] - s[2])
    last = x + (s[4] - s[3]) * (u + (s[4] - s[3]) / 2 * slope)
    assert torch.allclose(made.latents[0], last, atol=1e-5)


def test_a_missing_package_is_a_row_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(PEERS["DBCache"]), "needs", "no-such-package")
    result = module.compare(tiny_flux(), CALL, embedded(1), embedded(1, seed=5), [0.5], methods=["DBCache"])
    (line,) = [line for line in result.lines if line.method == "DBCache"]
    assert "pip install no-such-package" in line.note and line.psnr is None


def test_our_schedule_and_its_peers_stay_at_or_below_the_budget() -> None:
    result = module.compare(
        tiny_flux(), CALL, embedded(3), embedded(2, seed=5), [0.5],
        methods=["adaptcache", "fewer steps", "MagCache"], batch_size=3, sweep_on=1, finer=4,
        shows=lambda prompts, images: len(images) / 4,
    )  # fmt: skip
    lines = {line.method: line for line in result.lines}
    assert set(lines) == {"full run", "adaptcache", "fewer steps", "MagCache"}
    assert lines["full run"].calls == STEPS and lines["full run"].latent == 0
    assert all(
        line.calls is not None and line.calls <= STEPS / 2 for n, line in lines.items() if n != "full run"
    )
    assert lines["adaptcache"].blocks == pytest.approx(lines["adaptcache"].calls * 2)
    assert len(result.images["MagCache 0.5"]) == 2
    evidence = result.schedules[0.5].evidence
    assert evidence and evidence.psnr == lines["adaptcache"].psnr and evidence.n == 2
    assert result.data()["lines"][0]["method"] == "full run"
    assert lines["adaptcache"].shown == 0.5 and len(lines["adaptcache"].each) == 2
    # nearer to the exact solution than to what half the steps make of it
    assert lines["full run"].exact and lines["fewer steps"].exact
    assert lines["full run"].exact["mean"] > lines["fewer steps"].exact["mean"]


def test_unknown_methods_are_refused_with_those_there_are() -> None:
    with pytest.raises(LookupError, match="no method TeaCash; there are adaptcache, fewer steps"):
        module.methods_of(["TeaCash"])


def test_latent_error_is_relative_to_the_length_of_the_full_run(full: Trial) -> None:
    off = replace(full, latents=[1.1 * value for value in full.latents])
    assert latent_error(off, full) == pytest.approx(0.1, rel=1e-4)


def test_what_was_fitted_cost_what_the_runs_add_up_to() -> None:
    """Three full runs; the influence of step k takes the steps after it and the first, on 2 prompts."""
    result = module.compare(
        tiny_flux(), CALL, embedded(3), embedded(2, seed=5), [0.5],
        methods=["adaptcache", "fewer steps", "L2P", "TeaCache"], batch_size=3, sweep_on=1,
    )  # fmt: skip
    cost = {cost.method: cost for cost in result.costs}
    ours = cost["adaptcache"].calibration
    assert ours["full runs"] == pytest.approx(3 * STEPS)
    assert ours["influence of each step"] == pytest.approx(2 * sum(STEPS - k for k in range(1, STEPS)))
    assert ours["matching"] > 0 and ours["matching"] % (3 * STEPS / 2) == pytest.approx(0)  # some plans
    assert cost["L2P"].calibration == {name: ours[name] for name in ("full runs", "influence of each step")}
    assert cost["TeaCache"].calibration["calibration"] == pytest.approx(STEPS, rel=0.05)
    assert cost["fewer steps"].calibration == {} and cost["fewer steps"].settings == STEPS / 2
    assert [cost["L2P"].tried, cost["adaptcache"].settings] == [6, 0]


def test_memory_is_that_of_the_outputs_a_forecast_keeps(case: Case) -> None:
    size = case.call(case.pipe, PROMPTS[:1]).nbytes
    full = kept(case.pipe, CALL, PROMPTS[0])
    for order in (1, 2):
        knobs = {"cache_interval": 2, "disable_cache_before_step": 1, "max_order": order}
        with PEERS["TaylorSeer lite"].applied(case, knobs) as ready:
            more = kept(case.pipe, ready.call, PROMPTS[0], ready.visitor) - full
        assert order * size <= more <= (order + 1) * size
    with PEERS["L2P"].applied(case, {"plan": [0, 1, 2, 5], "history": 3}) as ready:
        more = kept(case.pipe, ready.call, PROMPTS[0], ready.visitor) - full
    assert 3 * size <= more <= 6 * size  # three outputs, the first latents, what the gate hands out meanwhile


def test_views_weigh_once() -> None:
    whole = torch.zeros(10)
    assert sum(storages(iter([whole, whole[:5], whole.view(2, 5)])).values()) == 40


def test_settings_between_two_on_both_sides_of_a_budget_are_tried_next() -> None:
    tried = [(8.0, 0.1, 1), (5.0, 0.4, 1), (2.0, 1.6, 1), (3.0, 0.1, 2)]
    found = [(calls, 30.0, {"t": t, "w": w}) for calls, t, w in tried]
    assert between(found, "t", [6]) == [{"t": 0.2, "w": 1}]
    assert between(found, "t", [6, 4]) == [{"t": 0.2, "w": 1}, {"t": 0.8, "w": 1}]
    assert between(found, "t", [1, 9]) == []


def test_finer_settings_come_nearer_to_the_budget(case: Case) -> None:
    bench = Bench(case, PROMPTS[:1], 1, 1, lambda *_: None)
    found, cost = bench.chosen(PEERS["EasyCache"], [4, 2])
    coarse = len(PEERS["EasyCache"].settings(case))
    assert cost.tried == len(found) > coarse
    assert cost.settings == pytest.approx(sum(calls for calls, _, _ in found))


def test_the_baseline_gets_all_the_calls_there_are_and_others_what_is_best(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(case, PROMPTS[:1], 1, 1, lambda *_: None)
    steps = [{"steps": count, "solver_order": 2} for count in (2, 4)]  # fewer did better, by chance
    found = [(2.0, 50.0, steps[0]), (4.0, 40.0, steps[1])]
    monkeypatch.setattr(Bench, "chosen", lambda self, peer, budgets: (found, None))
    for name, wanted in (("fewer steps", steps[1]), ("UniPC", steps[0])):
        (line,), _ = bench.best(PEERS[name], {0.5: 4})
        assert line.knobs == wanted


def test_annealing_finds_the_best_plan_of_a_small_grid() -> None:
    wanted = {0, 1, 4, 7}
    plan = annealed(10, 4, lambda plan: len(wanted - set(plan)) / 10, trials=200)
    assert set(plan) == wanted and plan == sorted(plan)


@pytest.mark.parametrize("calls", [1, 2, 5, 9])
def test_even_plans_have_as_many_steps_as_asked_for(calls: int) -> None:
    assert len(even(9, calls)) == calls and even(9, calls)[0] == 0


def test_a_method_that_breaks_is_a_row_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(case: Case) -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(PEERS["MagCache"], "settings", broken)
    result = module.compare(
        tiny_flux(), CALL, embedded(1), embedded(1, seed=5), [0.5], methods=["MagCache", "fewer steps"]
    )
    lines = {line.method: line for line in result.lines}
    assert lines["MagCache"].note == "broke: RuntimeError: no such kernel" and lines["fewer steps"].psnr


def test_guidance_with_two_calls_is_no_case_for_caches_of_attention(case: Case) -> None:
    assert case.branches == 1 and PEERS["PAB"].missing(case) is None
    other = embedded(1, seed=9)[0]
    negative = {f"negative_{name}": value for name, value in other.items()}
    guided = replace(
        case, call=replace(CALL, arguments={**CALL.arguments, "true_cfg_scale": 2.0}),
        prompts=[{**PROMPTS[0], **negative}],
    )  # fmt: skip
    assert guided.branches == 2 and "2 denoiser calls" in str(PEERS["PAB"].missing(guided))


def test_random_samplers_have_no_exact_solution() -> None:
    import diffusers

    assert no_solution(diffusers.FlowMatchEulerDiscreteScheduler()) is None
    assert no_solution(diffusers.DPMSolverMultistepScheduler()) is None
    sde = diffusers.DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++")
    for scheduler in (sde, diffusers.EulerAncestralDiscreteScheduler(), diffusers.LCMScheduler()):
        assert "draws noise" in str(no_solution(scheduler))


def test_calibrated_teacache_watches_every_step_and_both_changes(case: Case) -> None:
    settings = PEERS["TeaCache"].settings(case)
    assert {len(knobs["coefficients"]) for knobs in settings} == {5}
    all_of_it = by(case, "TeaCache", {**settings[-1], "threshold": 0.0})
    few = by(case, "TeaCache", {**settings[-1], "threshold": 100.0})
    full = run(case.pipe, CALL, PROMPTS[:1])
    assert torch.equal(all_of_it.latents[0], full.latents[0])
    assert 2 <= calls(few, full) < 2.2  # the first and the last step; the first block's modulation always


def test_batches_change_nothing_but_the_time(case: Case) -> None:
    one, two = (run(case.pipe, CALL, PROMPTS, batch_size=size) for size in (1, 2))
    assert one.latents[0].shape == two.latents[0].shape and len(one.images) == 2
    assert torch.allclose(one.latents[0], two.latents[0], atol=1e-5) and one.work == two.work
    assert math.isclose(latent_error(one, two), 0, abs_tol=1e-5)
    assert np.allclose(one.images[1], two.images[1], atol=1e-4)
