"""Denoisers that misbehave: what happens, and who is named."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CALL, STEPS, embedded, tiny_flux
from diffusers import FluxPipeline

import adaptcache
from adaptcache.calibration.match import Fit
from adaptcache.fitting.kernel import solve_ridge
from adaptcache.profiling.measure import record
from adaptcache.profiling.statistics import inner_products
from adaptcache.runs import PromptSet

ARGUMENTS = dict(CALL.arguments)


def misbehaving(pipe: FluxPipeline, change: Callable[[int, torch.Tensor], Any]) -> FluxPipeline:
    """Lets a function change the outputs of the denoiser in place, told the number of the call."""
    calls = iter(range(10**9))

    def hook(module: Any, args: Any, output: Any) -> None:
        change(next(calls), output[0])

    pipe.transformer.register_forward_hook(hook)
    return pipe


def calibrated(pipe: FluxPipeline, prompts: list, **options: Any) -> adaptcache.Schedule:
    options = {"budget": 0.5, **options}
    return adaptcache.calibrate(pipe, prompts, num_inference_steps=STEPS, pipe_kwargs=ARGUMENTS, **options)


def all_finite(schedule: adaptcache.Schedule) -> bool:
    rows = schedule.rules[0].forecast.table[0][0]
    return all(math.isfinite(weight) for row in rows for weight in row)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_output_that_is_not_finite_names_its_step_and_prompt(bad: float, prompts: list) -> None:
    def change(call: int, output: torch.Tensor) -> None:
        if call == STEPS + 3:  # of the second batch
            output[1, 0, 0] = bad

    with pytest.raises(ValueError, match=r"denoiser's output of prompt 3 at step 3 .*not finite .*float32"):
        record(CALL.of(misbehaving(tiny_flux(), change), batch_size=2), PromptSet.of(prompts[:4]))


def test_outputs_that_are_all_zero_are_refused(prompts: list) -> None:
    pipe = misbehaving(tiny_flux(), lambda call, output: output.zero_())
    with pytest.raises(ValueError, match="outputs for prompt 0 are zero at every step"):
        calibrated(pipe, prompts[:2])


@pytest.mark.parametrize("dead", [1, 4, STEPS - 1])
def test_a_step_whose_output_is_zero_is_calibrated(dead: int, prompts: list) -> None:
    def change(call: int, output: torch.Tensor) -> None:
        if call % STEPS == dead:
            output.zero_()

    profile = record(CALL.of(misbehaving(tiny_flux(), change)), PromptSet.of(prompts[:2])).profile
    assert np.isfinite(profile.gram).all() and (profile.gram[:, dead, :STEPS] == 0).all()
    assert np.isfinite(profile.magnitude).all() and np.isfinite(profile.change_out).all()


def test_a_denoiser_that_never_changes_is_reused_exactly(prompts: list) -> None:
    pipe = misbehaving(tiny_flux(), lambda call, output: output.fill_(0.5))
    schedule = calibrated(pipe, prompts[:2], budget=0.25)
    assert all_finite(schedule)
    full = CALL(pipe, prompts[2:3])
    with adaptcache.attach(pipe, schedule):
        torch.testing.assert_close(CALL(pipe, prompts[2:3]), full, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("ridge", [0.0, 1e-5])
def test_one_prompt_and_the_same_prompt_many_times_give_finite_weights(ridge: float, prompts: list) -> None:
    for given in (prompts[:1], [prompts[0]] * 3):
        assert all_finite(calibrated(tiny_flux(), given, fit=Fit(history=6, ridge=ridge)))


def test_a_planned_run_that_overflows_names_step_and_prompt(prompts: list) -> None:
    def change(call: int, output: torch.Tensor) -> None:
        if call >= STEPS * 2:  # the full runs are over: from here on, sensitivity and matching
            output.fill_(float("nan"))

    with pytest.raises(ValueError, match=r"of prompt 0 at step \d+ has values that are not finite"):
        calibrated(misbehaving(tiny_flux(), change), prompts[:2])


def test_held_out_images_that_are_not_finite_are_no_evidence(prompts: list) -> None:
    broken = {name: value * float("nan") for name, value in embedded(1)[0].items()}
    with pytest.raises(ValueError, match=r"image of prompt 2 from the full run .* not finite"):
        calibrated(tiny_flux(), prompts[:2], eval_prompts=[broken])


def test_weights_that_nothing_determines_stay_at_their_prior() -> None:
    prior = np.array([1.0, -0.5, 0.25])
    assert solve_ridge(np.zeros((3, 3)), np.zeros(3), prior, ridge=0.0) == pytest.approx(prior)
    a = np.random.default_rng(0).normal(size=20)
    same = np.stack([a, a, 0 * a])  # one direction for three weights
    w = solve_ridge(same @ same.T, same @ a, prior, ridge=0.0)
    assert w[:2].sum() == pytest.approx(1.0, abs=1e-6) and w[2] == 0.25


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inner_products_by_chunks_are_those_of_the_whole(dtype: torch.dtype) -> None:
    vectors = [vector.to(dtype) for vector in torch.randn(5, 3, 40_000)]  # two chunks, the last one short
    whole = torch.stack([vector.flatten() for vector in vectors]).double()
    np.testing.assert_allclose(inner_products(vectors), (whole @ whole.T).numpy(), rtol=1e-12, atol=1e-9)
