"""From prompts to a schedule, on a real pipeline."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CALL, STEPS
from diffusers import FluxPipeline

import adaptcache
from adaptcache.cache import Cache
from adaptcache.calibration.calibrate import calls_for
from adaptcache.engines.diffusers.sampler import refined
from adaptcache.evaluation.generate import generate
from adaptcache.evaluation.metrics import CEILING, psnr, ssim
from adaptcache.profiling.measure import content_key, measure
from adaptcache.runs import PromptSet
from adaptcache.schedule.schedule import Schedule
from tests.calls import Call

ARGUMENTS = dict(CALL.arguments)
MODULE = sys.modules["adaptcache.calibration.calibrate"]  # the package's attribute of this name is the function


def calibrated(pipe: FluxPipeline, prompts: list, **options: Any) -> Schedule:
    return adaptcache.calibrate(pipe, prompts[:3], num_inference_steps=STEPS, pipe_kwargs=ARGUMENTS, **options)


def test_more_budget_means_less_error_on_held_out_prompts(pipe: FluxPipeline, prompts: list) -> None:
    means = [
        calibrated(pipe, prompts, budget=budget, eval_prompts=prompts[3:]).evidence.psnr["mean"]
        for budget in (0.25, 0.5, 0.75)
    ]
    assert means == sorted(means) and means[0] < means[-1] - 3


def test_budget_one_is_exact_and_says_so(pipe: FluxPipeline, prompts: list) -> None:
    schedule = calibrated(pipe, prompts, budget=1.0, eval_prompts=prompts[3:])
    assert schedule.evidence.psnr == {"mean": CEILING, "p05": CEILING}
    plain = CALL(pipe, prompts[:1])
    with adaptcache.attach(pipe, schedule):
        assert torch.equal(CALL(pipe, prompts[:1]), plain)


def test_a_saved_schedule_makes_the_same_images(pipe: FluxPipeline, prompts: list, tmp_path: Path) -> None:
    schedule = calibrated(pipe, prompts, speed=2)
    loaded = Schedule.load(schedule.save(tmp_path / "s.json"))
    images = []
    for one in (schedule, loaded):
        with adaptcache.attach(pipe, one, strict=True):
            images.append(CALL(pipe, prompts[:1]))
    torch.testing.assert_close(*images, rtol=1e-5, atol=1e-5)  # JSON keeps 8 digits


def test_the_same_calibration_gives_the_same_bytes(pipe: FluxPipeline, prompts: list, tmp_path: Path) -> None:
    files = [calibrated(pipe, prompts, speed=2, eval_prompts=prompts[3:]).save(tmp_path / name) for name in ("a", "b")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_the_bytes_depend_on_neither_the_store_nor_the_folder(
    pipe: FluxPipeline, prompts: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = []
    for name, cache in (("none", None), ("cold", Cache(tmp_path / "s")), ("warm", Cache(tmp_path / "s"))):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        made = calibrated(pipe, prompts, speed=2, eval_prompts=prompts[3:], batch_size=2, cache=cache)
        files.append(made.save("made.json").read_bytes())
    assert files[0] == files[1] == files[2]


def test_calibrating_changes_nothing_on_the_pipeline(pipe: FluxPipeline, prompts: list) -> None:
    before = CALL(pipe, prompts[:1])
    scheduler, keys = type(pipe.scheduler), vars(pipe.transformer).keys()
    calibrated(pipe, prompts, speed=2)
    assert type(pipe.scheduler) is scheduler and vars(pipe.transformer).keys() == keys
    assert torch.equal(CALL(pipe, prompts[:1]), before)


def test_a_second_target_needs_no_second_profile(
    pipe: FluxPipeline, prompts: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache(tmp_path)
    first = calibrated(pipe, prompts, speed=2, cache=cache, eval_prompts=prompts[3:])

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("profiled again")

    monkeypatch.setattr("adaptcache.profiling.measure.record", never)
    assert calibrated(pipe, prompts, speed=2, cache=cache, eval_prompts=prompts[3:]) == first
    assert calibrated(pipe, prompts, speed=4, cache=cache).evidence is None


def test_a_broken_store_is_measured_again(pipe: FluxPipeline, prompts: list, tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    first = calibrated(pipe, prompts, speed=2, cache=cache)
    for file in tmp_path.rglob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:100])
    assert calibrated(pipe, prompts, speed=2, cache=cache) == first


def test_the_key_of_a_profile_knows_weights_scheduler_call_and_prompts(pipe: FluxPipeline, prompts: list) -> None:
    def key_of(call: Call, some: list) -> str:
        return content_key(call.of(pipe), PromptSet.of(some))

    keys = {key_of(CALL, prompts[:2])}
    assert key_of(CALL, prompts[:2]) in keys
    keys.add(key_of(CALL, prompts[1:3]))
    keys.add(key_of(type(CALL)(STEPS + 1, ARGUMENTS), prompts[:2]))
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, shift=3.0)
    keys.add(key_of(CALL, prompts[:2]))
    with torch.no_grad():
        pipe.transformer.proj_out.bias += 1
    keys.add(key_of(CALL, prompts[:2]))
    assert len(keys) == 5


def test_the_key_of_a_profile_is_the_same_in_every_process(pipe: FluxPipeline) -> None:
    key, defaults = (
        content_key(CALL.of(pipe), PromptSet.of(["a"])),
        pipe.scheduler.config["_use_default_values"],
    )
    assert len(defaults) > 1  # in the order of a set, which changes from process to process
    pipe.scheduler.register_to_config(_use_default_values=defaults[::-1])
    assert content_key(CALL.of(pipe), PromptSet.of(["a"])) == key


def test_another_grid_is_planned_anew_from_the_kernel(pipe: FluxPipeline, prompts: list) -> None:
    schedule = calibrated(pipe, prompts, budget=0.5)
    call = type(CALL)(12, ARGUMENTS)
    full = call(pipe, prompts[3:4])
    with adaptcache.attach(pipe, schedule) as handle:
        with pytest.warns(UserWarning, match="planned anew"):
            image = call(pipe, prompts[3:4])
        assert len(handle.report().computed) == 6
        assert handle.report().evidence == "extrapolated"
    assert (image - full).norm() < 0.02 * full.norm()


def test_a_teacher_takes_its_steps_between_ours(pipe: FluxPipeline) -> None:
    finer = refined(pipe.scheduler, 4)
    finer.set_timesteps(5)
    pipe.scheduler.set_timesteps(5)
    assert len(finer.timesteps) == 20
    torch.testing.assert_close(finer.timesteps[::4], pipe.scheduler.timesteps)
    with pytest.raises(ValueError, match="at least as many"):
        refined(pipe.scheduler, 0)


def test_a_teacher_leads_closer_to_the_exact_solution(pipe: FluxPipeline, prompts: list) -> None:
    setup, held_out = CALL.of(pipe), PromptSet.of(prompts[3:], 3)
    exact = generate(replace(setup, refine=24), held_out, reference=True).images

    def error(schedule: Schedule | None) -> float:
        made = generate(setup, held_out, schedule).images
        return float(np.mean([np.square(a - b).mean() for a, b in zip(made, exact, strict=True)]))

    taught = calibrated(pipe, prompts, budget=0.75, reference_steps=6 * STEPS)
    plain = calibrated(pipe, prompts, budget=0.75)
    assert error(taught) < error(plain)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"budget": 0.0}, r"budget must be in \(0, 1\], got 0"),
        ({"budget": 2.0}, "budget must be in .* got 2"),
        ({"speed": 0.5}, r"speed must be in \[1, 8\] for 8 steps, got 0.5"),
        ({}, "either a budget"),
        ({"speed": 2.0, "budget": 0.5}, "either a budget"),
        ({"speed": 2.0, "reference_steps": 20}, "multiple of the 8 steps, got 20"),
        ({"speed": 2.0, "reference_steps": 4}, "multiple of the 8 steps, got 4"),
    ],
)
def test_a_bad_target_costs_no_profile(
    options: dict, complaint: str, pipe: FluxPipeline, prompts: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MODULE, "measure", None)  # calling it would be another error
    with pytest.raises(ValueError, match=complaint):
        calibrated(pipe, prompts, **options)


@pytest.mark.parametrize("steps", [0, 1])
def test_too_few_steps_are_refused(steps: int, pipe: FluxPipeline, prompts: list) -> None:
    with pytest.raises(ValueError, match=f"num_inference_steps.*got {steps}|in {steps} steps|of one step"):
        measure(type(CALL)(steps, ARGUMENTS).of(pipe), PromptSet.of(prompts))


def test_no_prompts_and_unknown_arguments_are_refused(pipe: FluxPipeline, prompts: list) -> None:
    with pytest.raises(ValueError, match="no calibration prompts"):
        measure(CALL.of(pipe), PromptSet(()))
    with pytest.raises(TypeError, match="takes no hieght"):
        measure(type(CALL)(STEPS, {"hieght": 16}).of(pipe), PromptSet.of(prompts[:1]))


def test_calls_for_a_speed_and_for_its_budget_agree() -> None:
    assert [calls_for(28, speed=speed) for speed in (1, 2, 2.8, 4, 5.6, 28)] == [28, 14, 10, 7, 5, 1]
    assert [calls_for(28, budget=budget) for budget in (1, 0.5, 0.36, 0.25, 0.18)] == [28, 14, 10, 7, 5]


def test_metrics_have_their_closed_form() -> None:
    truth = np.full((16, 16, 3), 0.5)
    assert psnr(truth + 0.1, truth) == pytest.approx(20.0)
    assert psnr(truth, truth) == CEILING
    noisy = np.random.default_rng(0).random((16, 16, 3))
    assert ssim(noisy, noisy) == pytest.approx(1.0) and ssim(noisy, 1 - noisy) < 0
