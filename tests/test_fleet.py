"""What the page on fleets plans with is what is counted."""

from typing import Any

import pytest
import torch
import toy
from conftest import CALL, STEPS, embedded, tiny_flux
from diffusers import FluxImg2ImgPipeline
from test_loops import Segments

import adaptcache
from adaptcache.calibration.calibrate import Goal
from adaptcache.calibration.estimate import Size, estimate
from adaptcache.calibration.refine import REFINING
from adaptcache.calibration.search import SearchCost
from adaptcache.runs import PromptSet
from benchmarks.fleet import Tally
from tests.calls import Call
from tests.pipelines.flux import flux_parts, flux_prompts


def said_and_counted(
    pipe: Any, prompts: list, held_out: list, batch: int, call: Call = CALL, **asked: Any
) -> tuple[dict[str, int], dict[str, int]]:
    """Returns the passes by stage that a dry run says, and those of a calibration."""
    setup = call.of(pipe, batch_size=batch)
    goal = Goal(**asked)
    said = estimate(setup, PromptSet.of(prompts), PromptSet.of(held_out, len(prompts)), goal).size.passes()
    tally = Tally(pipe.transformer)
    adaptcache.calibrate(
        pipe, prompts, call.steps, eval_prompts=held_out, **asked, batch_size=batch, pipe_kwargs=call.arguments,
        progress=tally.progress,
    )  # fmt: skip
    assert tally.open == 0  # all calls belong to a stage
    return said, {stage: count for stage, count in tally.stages.items() if count}


@pytest.mark.parametrize("asked", [
    {"budget": 0.5}, {"speed": 2.8}, {"budget": 0.25, "effort": 3.0}, {"budget": 1.0}, {"speed": 8.0},
    {"gears": (0.25, 0.5), "min_psnr": 20.0},
], ids=str)  # fmt: skip
def test_a_calibration_makes_the_calls_that_a_dry_run_says(asked: dict) -> None:
    prompts = embedded(6)
    said, counted = said_and_counted(tiny_flux(), prompts[:4], prompts[4:], 2, **asked)
    assert counted == said


def test_image_to_image_runs_are_counted_with_the_steps_that_they_have() -> None:
    pipe = FluxImg2ImgPipeline(**tiny_flux().components)
    pipe.set_progress_bar_config(disable=True)
    call = Call(STEPS, {**CALL.arguments, "image": torch.rand(1, 3, 16, 16), "strength": 0.7})
    prompts = embedded(4)
    said, counted = said_and_counted(pipe, prompts[:2], prompts[2:], 2, call, speed=1.7)
    assert counted == said and said["full runs"] < 2 * STEPS


def test_calls_of_several_loops_are_refused() -> None:
    pipe, rows = Segments(**flux_parts()), PromptSet.of(flux_prompts())
    with pytest.raises(ValueError, match="a call has 3 denoising loops here, each calibrated by itself"):
        estimate(Call(STEPS).of(pipe, batch_size=2), rows, rows[:0], Goal(speed=2.0))


def test_a_refinement_makes_no_more() -> None:
    said, counted = said_and_counted(tiny_flux(), embedded(2), [], 1, speed=4.0, effort=40.0)
    assert 0 < counted.pop(REFINING) <= said.pop(REFINING) and counted == said


@pytest.mark.parametrize(("steps", "count", "branches", "efforts"), [
    (2, 1, 2, (0.0, 12.0)), (3, 2, 1, (1.0, 12.0)), (4, 4, 2, (3.3, 12.0)), (5, 1, 1, (0.0, 1.0, 5.2)),
    (9, 4, 1, (4.4,)),
], ids=str)  # fmt: skip
def test_searches_spend_what_was_announced_to_the_last_call(
    steps: int, count: int, branches: int, efforts: tuple[float, ...]
) -> None:
    for calls in range(1, steps + 1):
        for effort in efforts:
            pipe = toy.Pipe(branches)
            tally = Tally(pipe.transformer)
            adaptcache.calibrate(
                pipe, toy.PROMPTS[:count], steps, budget=calls / steps, effort=effort, batch_size=4,
                progress=tally.progress,
            )  # fmt: skip
            passes = Size(steps, calls, count, 0, effort, batch_size=4).passes()
            assert dict(tally.stages) == {stage: branches * n for stage, n in passes.items()}, (calls, effort)


def test_what_is_announced_is_never_above_the_effort() -> None:
    for steps in range(2, 30):
        for calls in range(1, steps + 1):
            for prompts in (1, 2, 4, 16):
                for effort in (0.0, 0.4, 5.0, 12.0, 40.0):
                    found = SearchCost.of(effort, steps, calls, prompts)
                    third = (found.finals == 3) * prompts * calls
                    assert found.judges <= prompts and found.room * found.judges + third <= effort * steps + 1e-6
                    assert found.room == 0 or found.room >= max(2, found.finals) * calls
