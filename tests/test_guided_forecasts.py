"""Forecasts of guided outputs that use the output with the prompt beside them."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

import adaptcache
from adaptcache.calibration.match import Fit, match
from adaptcache.engines.comfyui.compatibility import compare_model
from adaptcache.engines.diffusers.gate import Gate, first_output
from adaptcache.engines.formats import export
from adaptcache.engines.serving import load_schedules
from adaptcache.errors import LoopError, ScheduleError
from adaptcache.evaluation.generate import TimedHook
from adaptcache.forecasts.matched import Matched, split_row
from adaptcache.hooks import SchedulerStep, StepHook
from adaptcache.profiling.measure import measure
from adaptcache.runs import PromptSet
from adaptcache.runtime.runner import Runner
from adaptcache.schedule.schedule import Schedule
from tests.calls import Call
from tests.pipelines.table import built, generated, planned
from tests.pipelines.unet import sd_call, sd_parts

PLAN = [0, 1, 3]
WITHOUT = Fit(features=("past_x", "x", "x0"))


class Watcher(StepHook):
    """Notes what the gate says was given with the prompt."""

    reads_branches = True

    def __init__(self) -> None:
        self.seen: list[Tensor | None] = []

    def model_output(self, step: SchedulerStep) -> Tensor:
        self.seen.append(step.cond)
        return step.u


@pytest.mark.parametrize("name", ["Flux, two branches", "Stable Diffusion 1.5", "Z-Image", "Flux"])
def test_the_output_with_the_prompt_is_that_of_the_first_call_or_of_the_second_half(name: str) -> None:
    setup, raw, hook = built(name), list[Any](), Watcher()
    denoiser = getattr(setup.pipe, "transformer", None) or setup.pipe.unet
    watched = denoiser.register_forward_hook(lambda module, args, output: raw.append(output[0]))
    with closing(Gate(setup.pipe, hook).open()):
        generated(setup)
    watched.remove()
    calls = len(raw) // setup.steps
    for index, cond in enumerate(hook.seen):
        if name == "Flux":
            assert cond is None
            continue
        first = raw[index * calls]
        first = torch.stack(first) if isinstance(first, list) else first
        assert cond is not None
        torch.testing.assert_close(cond.flatten(), (first if calls == 2 else first.chunk(2)[1]).flatten())


def test_rows_have_a_weight_of_each_kind_for_each_output() -> None:
    weights = split_row((1, 2, 3, 4, 5, 6, 7, 8), ("past_x", "past_c", "x", "x0"))
    assert (weights.past, weights.past_x, weights.past_c, weights.x, weights.x0) == ((1, 2), (3, 4), (5, 6), 7, 8)
    with pytest.raises(ValueError, match="past_x and past_c has to be the first"):
        Matched(features=("past_c", "past_x"), table=((((),),),))


@pytest.fixture(scope="module")
def fitted() -> tuple[Any, Schedule]:
    """A guided pipeline and a schedule of it."""
    setup = built("Flux, two branches")
    schedule = adaptcache.calibrate(
        setup.pipe, setup.prompts, setup.steps, budget=0.5, pipe_kwargs=dict(setup.call), progress=False
    )
    return setup, schedule


def test_calibration_uses_it_where_guidance_is_on(fitted: tuple[Any, Schedule], tmp_path: Any) -> None:
    _, schedule = fitted
    assert schedule.reads_branches and schedule.format == 3
    assert Schedule.load(schedule.save(tmp_path / "guided.json")).reads_branches
    text = (tmp_path / "guided.json").read_text().replace('"format": 3', '"format": 2')
    (tmp_path / "old.json").write_text(text)
    with pytest.raises(ScheduleError, match="says format 2 and holds what format 3 brought"):
        Schedule.load(tmp_path / "old.json")
    plain = built("Flux")
    without = adaptcache.calibrate(
        plain.pipe, plain.prompts, plain.steps, budget=0.5, pipe_kwargs=dict(plain.call), progress=False
    )
    assert not without.reads_branches and without.format < 3


@pytest.mark.parametrize("name", ["Flux, two branches", "Stable Diffusion 1.5"])
def test_with_both_branches_runs_end_nearer(name: str) -> None:
    made = built(name)
    setup, prompts = Call(made.steps, dict(made.call)).of(made.pipe), PromptSet(tuple(made.prompts))
    measurement = measure(setup, prompts)
    apart, together = (match(measurement, PLAN, fit) for fit in (Fit(), WITHOUT))
    assert "past_c" in apart.forecast.features and "past_c" not in together.forecast.features
    assert apart.error < together.error


def test_a_hook_that_watches_another_shows_it_what_it_reads(fitted: tuple[Any, Schedule]) -> None:
    setup, schedule = fitted
    with adaptcache.attach(setup.pipe, schedule) as handle:
        expected = generated(setup)
    assert handle.report().calls[1:] != () and sum(map(sum, handle.report().calls)) == 2 * 3
    with closing(Gate(setup.pipe, TimedHook(Runner(schedule))).open()):
        assert torch.equal(generated(setup)[0], expected[0])


def test_without_guidance_the_one_output_stands_for_both(fitted: tuple[Any, Schedule]) -> None:
    setup, schedule = fitted
    with adaptcache.attach(setup.pipe, schedule, allow=("guidance",)) as handle:
        generated(setup, true_cfg_scale=1.0)
    assert handle.report().evidence == "extrapolated"


def test_three_outputs_a_step_are_refused() -> None:
    pipe = diffusers.StableDiffusionPAGPipeline(**sd_parts(), pag_applied_layers=["mid"])
    setup = built("Stable Diffusion 1.5")
    rows = tuple(() if i in PLAN else (1.0, 0.0, 0.0, 0.0) for i in range(setup.steps))
    forecast = Matched(history=1, features=("past_c", "x", "x0"), table=((rows,),))
    schedule = planned(setup, PLAN, forecast)
    with adaptcache.attach(pipe, schedule), pytest.raises(LoopError, match="cannot be told among the 3"):
        pipe(**sd_call() | dict(setup.prompts[0]), pag_scale=2.0, num_inference_steps=6, output_type="latent")


def test_what_sees_the_guided_output_alone_refuses(fitted: tuple[Any, Schedule], tmp_path: Any) -> None:
    setup, schedule = fitted
    with pytest.raises(ScheduleError, match="a table cannot tell these apart"):
        export(schedule, "table")
    with pytest.raises(ScheduleError, match="serving engines cannot tell these apart"):
        load_schedules(str(schedule.save(tmp_path / "guided.json")))
    with pytest.raises(ScheduleError, match="a hook in the denoiser cannot tell these apart"):
        adaptcache.hook(setup.pipe.transformer, schedule)
    findings = compare_model(schedule, None)
    assert "ComfyUI cannot tell these apart" in next(findings).says
    assert export(schedule, "diffusers").plan  # by reuse, as all other engines do


@pytest.mark.parametrize("output", [(None,), ({"cache": 3},), [], None])
def test_a_call_that_returns_no_tensor_has_no_output_to_forecast_by(output):
    assert first_output(output) is None
