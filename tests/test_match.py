"""Trajectory matching on a real pipeline: targets, weights, and what they are worth."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import toy
from alike import assert_alike
from conftest import CALL, STEPS, embedded, schedule_of
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    UniPCMultistepScheduler,
)

import adaptcache
from adaptcache.calibration.fit import build_schedule, choose_plan, fit_schedule
from adaptcache.calibration.match import Fit, match, target_output
from adaptcache.calibration.search import SearchCost, choose_judges, moves, plans_for, prompt_costs, search_plan
from adaptcache.engines.diffusers.gate import DiffusersStep
from adaptcache.engines.diffusers.sampler import sampler
from adaptcache.fitting.instant import instant
from adaptcache.fitting.kernel import pair_errors
from adaptcache.fitting.plan import plan_cost
from adaptcache.forecasts.extrapolate import Extrapolate
from adaptcache.policies.plan import Plan
from adaptcache.presets import Preset
from adaptcache.presets.prompts import read_prompts
from adaptcache.profiling.measure import measure, record
from adaptcache.profiling.reference import Trajectory
from adaptcache.profiling.statistics import statistics_of
from adaptcache.runs import PromptSet
from adaptcache.schedule.rule import Rule
from adaptcache.step import Step
from tests.calls import Call

SCHEDULERS = [
    FlowMatchEulerDiscreteScheduler(shift=3.0),
    DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=1.0),
    UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=1.0),
    DDIMScheduler(clip_sample=False),
    EulerAncestralDiscreteScheduler(),
    DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"),
]


@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=lambda s: type(s).__name__)
def test_the_target_of_a_landing_is_the_output_that_led_there(scheduler: Any) -> None:
    generator, names = torch.Generator().manual_seed(0), inspect.signature(type(scheduler).step).parameters
    noise = {"generator": generator} if "generator" in names else {}
    scheduler.set_timesteps(6)
    x, found = torch.randn(1, 16, 8, generator=generator), 0
    for i, t in enumerate(scheduler.timesteps):
        u = torch.randn(x.shape, generator=generator)
        arguments = {"model_output": u, "timestep": t, "sample": x, **noise}
        where = Step(i, tuple(range(6)))
        step = DiffusersStep(where, 0, 0, True, x, u, scheduler, type(scheduler).step, arguments)
        expected = step.preview(u)
        target = target_output(step, expected)
        if target is not None:
            torch.testing.assert_close(target, u, rtol=1e-3, atol=2e-3)
            found += 1
        x = step.run(u).prev_sample
        torch.testing.assert_close(x, expected)  # the noise of the dry step is that of the real one
    assert found >= 5  # one step may not depend on the output


def test_matched_weights_beat_reuse_and_lines_on_held_out_prompts(pipe: FluxPipeline, prompts: list) -> None:
    setup, chosen = CALL.of(pipe), PromptSet.of(prompts[:4])
    schedule = fit_schedule(measure(setup, chosen), 4)
    plan = schedule.rules[0].policy.steps(schedule.grid.times)
    full = CALL(pipe, prompts[4:5], first=4)

    def error(schedule: Any) -> float:
        with adaptcache.attach(pipe, schedule):
            return float((CALL(pipe, prompts[4:5], first=4) - full).norm())

    lines = error(schedule_of(pipe, plan))
    reuse = error(schedule_of(pipe, plan, forecast=Extrapolate(order=0)))
    assert error(schedule) < min(lines, 0.5 * reuse)


def test_matching_knows_where_its_runs_end(pipe: FluxPipeline, prompts: list) -> None:
    setup, chosen = CALL.of(pipe), PromptSet.of(prompts[:1])
    recorded = record(setup, chosen)
    matching, runs = match(recorded, [0, 1, 3, 5]), recorded.runs
    schedule = schedule_of(pipe, [0, 1, 3, 5], forecast=matching.forecast)
    with adaptcache.attach(pipe, schedule):
        own = (CALL(pipe, prompts[:1]) - runs[0].y[0][-1]).norm() / runs[0].y[0][-1].norm()
    assert own < 0.05
    assert own**2 == pytest.approx(matching.error, rel=1e-3)


def test_prompts_count_by_the_decibels_their_runs_end_with(pipe: FluxPipeline, prompts: list) -> None:
    plan, ends = [0, 1, 3, 5], []
    setup, chosen = CALL.of(pipe, batch_size=2), PromptSet.of(prompts[:2])
    recorded = record(setup, chosen)
    matching, runs = match(recorded, plan), recorded.runs
    with adaptcache.attach(pipe, schedule_of(pipe, plan, forecast=matching.forecast)):
        made = CALL(pipe, prompts[:2])
    for own, truth in zip(made, runs[0].y[0][-1], strict=True):
        ends.append(float((own - truth).square().sum() / truth.square().sum()))
    assert matching.error == pytest.approx(np.exp(np.log(ends).mean()), rel=1e-3)


def test_weights_at_computed_steps_undo_earlier_errors(pipe: FluxPipeline, prompts: list) -> None:
    setup, chosen = CALL.of(pipe, batch_size=4), PromptSet.of(prompts[:4])
    recorded, plan = record(setup, chosen), [0, 1, 4, 6]
    plain = match(recorded, plan, Fit(correct=False))
    found = match(recorded, plan)
    rows, bare = found.forecast.table[0][0], plain.forecast.table[0][0]
    assert [i for i, row in enumerate(rows) if row] == [2, 3, 4, 5, 6, 7]  # exact until step 2 is skipped
    assert rows[2] == bare[2] and [i for i, row in enumerate(bare) if row] == [2, 3, 5, 7]
    assert found.error < plain.error
    everything = match(recorded, list(range(STEPS)))
    assert not any(everything.forecast.table[0][0])
    finer = match(measure(replace(setup, refine=4), chosen), list(range(STEPS)))
    assert all(finer.forecast.table[0][0])  # of the sampler, which errs at every step


NOISY = [
    FlowMatchEulerDiscreteScheduler(stochastic_sampling=True),
    sampler("DPMSolverMultistepScheduler", FlowMatchEulerDiscreteScheduler(), algorithm_type="sde-dpmsolver++"),
]


@pytest.mark.parametrize("scheduler", NOISY, ids=lambda s: type(s).__name__)
def test_where_the_sampler_adds_noise_the_latents_of_computed_steps_help(scheduler: Any) -> None:
    """On the demo model: a random denoiser does not tell noise from pictures."""
    preset = Preset.load("emoji-flux-32")
    pipe, known = preset.load_pipeline("cpu"), read_prompts(preset.prompts)
    pipe.scheduler = scheduler
    call, prompts = Call(10, preset.call), known.calibration[:8]
    setup, chosen = call.of(pipe, batch_size=8), PromptSet.of(prompts)
    recorded = record(setup, chosen)
    profile, runs = recorded.profile, recorded.runs
    assert profile.noisy
    given = (recorded, [0, 2, 4, 6, 8])
    without = match(*given, fit=Fit(features=("x", "x0")))
    found = match(*given)
    assert found.forecast.features == ("past_x", "x", "x0") and len(found.forecast.table[0][0][5]) == 8
    assert found.error < without.error / 2
    times = tuple(map(float, profile.times))
    rule = Rule(policy=Plan.of(given[1], times), forecast=found.forecast)
    with adaptcache.attach(pipe, build_schedule(setup, profile, (rule,))):
        made, truth = call(pipe, prompts), runs[0].y[0][-1]
    ends = [float((a - b).square().sum() / b.square().sum()) for a, b in zip(made, truth, strict=True)]
    assert np.exp(np.log(ends).mean()) == pytest.approx(found.error, rel=1e-2)


@pytest.mark.parametrize(
    "kind", ["FlowMatchEulerDiscreteScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler"]
)
def test_where_it_adds_none_they_say_nothing_new_and_are_left_out(
    pipe: FluxPipeline, prompts: list, kind: str
) -> None:
    pipe.scheduler = sampler(kind, pipe.scheduler)
    setup, chosen = CALL.of(pipe), PromptSet.of(prompts[:2])
    recorded = record(setup, chosen)
    matching = match(recorded, [0, 2, 5])
    assert not recorded.profile.noisy and matching.forecast.features == ("x", "x0")


def test_matching_is_deterministic_whatever_the_threads_do(pipe: FluxPipeline, prompts: list) -> None:
    setup, chosen = CALL.of(pipe), PromptSet.of(prompts[:4])
    recorded = record(setup, chosen)
    results = [match(recorded, [0, 2, 5]) for _ in range(2)]
    assert results[0] == results[1]


def test_an_error_in_a_pipeline_is_raised_and_leaves_nothing(pipe: FluxPipeline, prompts: list) -> None:
    setup = CALL.of(pipe)
    recorded = record(setup, PromptSet.of(prompts[:2]))
    bad = [prompts[0], {"prompt_embeds": prompts[1]["prompt_embeds"]}]
    with pytest.raises(ValueError, match="pooled_prompt_embeds"):
        match(replace(recorded, prompts=PromptSet(tuple(bad))), [0, 2, 5])
    assert "_compiled_call_impl" not in vars(pipe.transformer)


def test_a_profile_measures_what_it_says(pipe: FluxPipeline, prompts: list) -> None:
    recorded = record(CALL.of(pipe), PromptSet.of(prompts[:2]))
    profile, runs = recorded.profile, recorded.runs
    u = torch.stack([value[0].flatten() for value in runs[1].u[0]]).double()
    gram = (u @ u.T).numpy()
    assert profile.gram[1][:STEPS, :STEPS] == pytest.approx(gram / np.diagonal(gram).mean())
    change = (u[3] - u[2]).abs().mean() / u[2].abs().mean()
    assert profile.change_out[1][3] == pytest.approx(float(change), rel=1e-5)
    assert profile.times == pytest.approx([1 - i / STEPS for i in range(STEPS)])


def test_a_batch_has_the_statistics_of_its_samples(pipe: FluxPipeline) -> None:
    prompts = embedded(4)
    singles = record(CALL.of(pipe), PromptSet.of(prompts)).runs
    run = singles[0]
    joined = Trajectory(
        run.times,
        *([[torch.cat([getattr(single, kind)[0][i] for single in singles]) for i in range(STEPS)]] for kind in "uxy"),
    )
    for row, single in zip(statistics_of(joined, PromptSet.of(prompts)), singles, strict=True):
        alone = statistics_of(single, PromptSet.of(prompts[:1]))[0]
        for name, values in row.items():
            assert values == pytest.approx(alone[name], rel=1e-6)


def test_a_plan_that_begins_like_another_is_matched_by_its_own_calls_alone(pipe: FluxPipeline, prompts: list) -> None:
    setup, chosen = CALL.of(pipe, batch_size=2), PromptSet.of(prompts[:4])
    recorded = record(setup, chosen)
    first = match(recorded, [0, 2, 4, 6])
    alone, shared = (match(recorded, [0, 2, 5, 6], begun=begun) for begun in (None, first))
    assert shared.forecast == alone.forecast and shared.error == alone.error
    for (_, here), (_, there) in zip(shared.seen, alone.seen, strict=True):
        np.testing.assert_array_equal(here, there)
    assert first.cost == alone.cost == 4 * 4 / STEPS
    assert shared.cost == 4 * 3 / STEPS  # the first step is always computed, then those from the difference on
    late = match(recorded, [0, 2, 5, 6], begun=replace(first, until=2))
    assert late.cost == 4 * 4 / STEPS and late.forecast == alone.forecast  # as much is replayed as may be
    assert match(recorded, first.plan, begun=shared).error == first.error


def test_a_search_finds_no_worse_plan_and_costs_no_more_than_it_may(pipe: FluxPipeline, prompts: list) -> None:
    setup, chosen = CALL.of(pipe, batch_size=4), PromptSet.of(prompts[:4])
    measured, fit = measure(setup, chosen), Fit()
    none = search_plan(measured, 3, fit, SearchCost.of(0.0, STEPS, 3, 4))
    assert none.plan == none.start == next(iter(plans_for(measured.profile, 3))) and none.cost == none.tried == 0
    announced = SearchCost.of(8.0, STEPS, 3, 4)
    found = search_plan(measured, 3, fit, announced)
    assert found.cost == announced.room * 3 / STEPS and found.tried > 1 and len(found.judges) == 3
    first = found.judges[0]
    few = replace(measured.head(3, first=first), profile=measured.profile)
    firm = replace(fit, ridge=10 * fit.ridge)
    assert measured.request
    proposals = {*plans_for(measured.profile, 3), instant(measured.request.sampler, 3).plan}
    ends = {plan: match(few, plan, firm).ends for plan in (found.plan, *proposals)}
    assert ends[found.plan].mean() <= ends[found.start].mean()  # no move made it worse
    if not found.whole:  # else all prompts have chosen between two
        assert ends[found.start].mean() == min(ends[plan].mean() for plan in proposals)
    made = fit_schedule(measured, 3, effort=2.0).made["search"]
    assert made["full_runs"] <= 2 + 2 * 4 * 3 / STEPS


def test_prompts_that_did_not_judge_decide_about_plans(pipe: FluxPipeline, prompts: list) -> None:
    setup, chosen = CALL.of(pipe, batch_size=4), PromptSet.of(prompts[:4])
    best, compared, found = choose_plan(measure(setup, chosen), 3, Fit(), effort=8.0)
    others = [number for number in range(4) if number not in found.judges]
    assert len(others) == 1 and compared[0].plan == found.start
    assert best.ends[others].mean() <= compared[0].ends[others].mean()  # never below the proposal
    assert best.error == pytest.approx(np.exp(best.ends.mean()))


def test_those_judge_who_say_what_all_say() -> None:
    full = toy.profile(9)
    odd = full.gram[0][::-1, ::-1] * np.geomspace(1, 100, len(full.gram[0]))[:, None]
    profile = replace(full, gram=np.stack([(odd + odd.T) / 2 + 1e3 * np.eye(len(odd)), *[full.gram[0]] * 6]))
    plans = list(plans_for(full, 3))
    assert choose_judges(profile, plans, 2, 7) >= 1 and choose_judges(profile, plans, 7, 7) == 0
    assert choose_judges(profile, plans, 2, 3) in (1, 3, 4)  # within one run, or from the beginning of one
    errors, weights = pair_errors(full.gram[0], latents=True), full.sensitivity**0.5
    for plan in plans:
        assert prompt_costs(full, plan)[0] == pytest.approx(plan_cost(errors, weights, plan))


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_what_was_measured_on_some_prompts_is_cut_out_of_any_runs(
    pipe: FluxPipeline, prompts: list, batch: int
) -> None:
    setup, chosen = CALL.of(pipe, batch_size=batch), PromptSet.of(prompts[:4])
    cut, alone = measure(setup, chosen).head(2, first=2), record(setup, chosen[2:4])
    assert len(cut.runs) == len(alone.runs) and cut.profile.gram.shape[0] == 2
    for here, there in zip(cut.runs, alone.runs, strict=True):
        torch.testing.assert_close(here.y[0][-1], there.y[0][-1])


def test_calls_are_moved_alone_and_in_pairs_within_the_run() -> None:
    found = set(moves((0, 2, 6), 7))
    assert (0, 3, 6) in found and (0, 2, 5) in found and (0, 1, 5) in found and (0, 4, 6) in found
    assert all(plan[0] == 0 and plan[-1] < 7 and len(set(plan)) == 3 for plan in found) and (0, 2, 6) not in found


class Single(torch.Tensor):
    """A tensor of a device that has no double precision (MPS); it comes to the CPU by `cpu()` and `to("cpu")`."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_function__(function, types, args, kwargs)
        if function is torch.Tensor.cpu or (function is torch.Tensor.to and "cpu" in args):
            return result.as_subclass(torch.Tensor)
        if isinstance(result, Single) and result.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return result

    def __deepcopy__(self, memo: Any) -> Single:
        return self.clone()


def test_devices_without_double_precision_calibrate_alike(pipe: FluxPipeline, prompts: list) -> None:
    options = {"speed": 2, "effort": 40.0, "gears": (), "progress": False, "eval_prompts": prompts[2:4]}

    def calibrated() -> Any:
        return adaptcache.calibrate(pipe, prompts[:2], STEPS, pipe_kwargs=CALL.arguments, **options)

    expected = calibrated()
    with pipe.transformer.register_forward_hook(lambda module, args, out: (out[0].as_subclass(Single), *out[1:])):
        found = calibrated()
        with adaptcache.attach(pipe, speed=2):
            CALL(pipe, prompts[:1])
    assert_alike([found], [expected])
