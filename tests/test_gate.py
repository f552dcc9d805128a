"""The gate on a real pipeline: identity, cleanliness, freshness, refusal."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from conftest import CALL, STEPS, embedded, schedule_of, tiny_flux
from diffusers import FluxPipeline

import adaptcache
from adaptcache.errors import AttachError, ScheduleError
from tests.calls import Call

SKIPPING = [0, 1, 4, 6]


def counted(pipe: FluxPipeline) -> list[int]:
    """Counts the true forwards of the denoiser, inside of everything."""
    made = [0]
    forward = type(pipe.transformer).forward

    def counting(*args: Any, **kwargs: Any) -> Any:
        made[0] += 1
        return forward(pipe.transformer, *args, **kwargs)

    pipe.transformer.forward = counting
    return made


def test_computing_every_step_changes_nothing(pipe: FluxPipeline, prompts: list) -> None:
    plain = CALL(pipe, prompts[:1])
    with adaptcache.attach(pipe, schedule_of(pipe, list(range(STEPS)))):
        assert torch.equal(CALL(pipe, prompts[:1]), plain)


def test_a_plan_makes_exactly_its_calls(pipe: FluxPipeline, prompts: list) -> None:
    made = counted(pipe)
    with adaptcache.attach(pipe, schedule_of(pipe, SKIPPING)) as handle:
        CALL(pipe, prompts[:1])
    assert made[0] == len(SKIPPING)
    assert handle.report().computed == SKIPPING
    assert (handle.report().made, handle.report().skipped) == (4, 4)


def test_every_branch_is_skipped_together(pipe: FluxPipeline, prompts: list) -> None:
    made = counted(pipe)
    negative = {f"negative_{name}": value for name, value in embedded(1, seed=9)[0].items()}
    call = Call(STEPS, {"height": 16, "width": 16, "true_cfg_scale": 3.0, **negative})
    with adaptcache.attach(pipe, schedule_of(pipe, SKIPPING)) as handle:
        call(pipe, prompts[:1])
    assert made[0] == 2 * len(SKIPPING)
    assert all(len(branches) == 2 for branches in handle.report().calls)


def test_the_forecast_is_what_the_scheduler_gets(pipe: FluxPipeline, prompts: list) -> None:
    given: list[torch.Tensor] = []
    step = type(pipe.scheduler).step

    class Listening(type(pipe.scheduler)):  # type: ignore[misc]
        def step(self, model_output: Any, timestep: Any, sample: Any, **kwargs: Any) -> Any:
            given.append(model_output.clone())
            return step(self, model_output, timestep, sample, **kwargs)

    pipe.scheduler.__class__ = Listening
    with adaptcache.attach(pipe, schedule_of(pipe, [0, 1])):
        CALL(pipe, prompts[:1])
    for i in range(2, STEPS):  # a line through steps 0 and 1
        torch.testing.assert_close(given[i], given[1] + (i - 1) * (given[1] - given[0]))


def test_closing_leaves_nothing(pipe: FluxPipeline) -> None:
    scheduler, before = type(pipe.scheduler), dict(vars(pipe.transformer))
    adaptcache.attach(pipe, schedule_of(pipe, SKIPPING)).close()
    assert type(pipe.scheduler) is scheduler
    assert "step" not in vars(pipe.scheduler) and "set_timesteps" not in vars(pipe.scheduler)
    assert vars(pipe.transformer).keys() == before.keys()
    assert pickle.loads(pickle.dumps(pipe.scheduler)).config == pipe.scheduler.config


def test_a_failed_attach_leaves_nothing(pipe: FluxPipeline) -> None:
    schedule, keys = schedule_of(pipe, SKIPPING), vars(pipe.transformer).keys()
    scheduler = type(pipe.scheduler)
    with adaptcache.attach(pipe, schedule), pytest.raises(AttachError, match="attached already"):
        adaptcache.attach(pipe, schedule)
    assert type(pipe.scheduler) is scheduler and vars(pipe.transformer).keys() == keys
    with pytest.raises(LookupError, match="no gear 3"):
        adaptcache.attach(pipe, schedule, gear=3)
    assert type(pipe.scheduler) is scheduler and vars(pipe.transformer).keys() == keys


def test_second_run_equals_the_first(pipe: FluxPipeline, prompts: list) -> None:
    with adaptcache.attach(pipe, schedule_of(pipe, SKIPPING)):
        first = CALL(pipe, prompts[:1])
        assert torch.equal(CALL(pipe, prompts[:1]), first)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_run_after_an_interrupted_one_starts_fresh(pipe: FluxPipeline, prompts: list, error: Any) -> None:
    def stop(pipe: Any, step: int, t: Any, values: dict) -> dict:
        if step == 3:
            raise error("enough")
        return values

    with adaptcache.attach(pipe, schedule_of(pipe, SKIPPING)):
        first = CALL(pipe, prompts[:1])
        with pytest.raises(error):
            Call(STEPS, {**CALL.arguments, "callback_on_step_end": stop})(pipe, prompts[1:2])
        assert torch.equal(CALL(pipe, prompts[:1]), first)


def test_runs_after_other_steps_batches_and_sizes_start_fresh(pipe: FluxPipeline, prompts: list) -> None:
    two = {name: torch.cat([prompt[name] for prompt in prompts[:2]]) for name in prompts[0]}
    with adaptcache.attach(pipe, schedule_of(pipe, SKIPPING)):
        first = CALL(pipe, prompts[:1])
        Call(5, CALL.arguments)(pipe, prompts[:1])
        CALL(pipe, [two])
        Call(STEPS, {"height": 32, "width": 24})(pipe, prompts[:1])
        assert torch.equal(CALL(pipe, prompts[:1]), first)


def test_images_of_a_batch_do_not_touch_each_other(pipe: FluxPipeline, prompts: list) -> None:
    with adaptcache.attach(pipe, schedule_of(pipe, SKIPPING)):
        singles = [CALL(pipe, [prompt], first=k) for k, prompt in enumerate(prompts[:4])]
        four = {name: torch.cat([prompt[name] for prompt in prompts[:4]]) for name in prompts[0]}
        noise = [torch.Generator().manual_seed(k) for k in range(4)]
        batch = pipe(**four, num_inference_steps=STEPS, generator=noise, output_type="latent", **CALL.arguments)
    torch.testing.assert_close(batch.images, torch.cat(singles), rtol=1e-4, atol=1e-4)


def test_nothing_of_a_run_is_kept_after_it(pipe: FluxPipeline, prompts: list) -> None:
    with adaptcache.attach(pipe, schedule_of(pipe, SKIPPING)) as handle:
        CALL(pipe, prompts[:1])
        assert handle._gate.loop is None
        assert not handle._runner.history.streams


def test_a_replaced_scheduler_is_refused(pipe: FluxPipeline, prompts: list) -> None:
    with adaptcache.attach(pipe, schedule_of(pipe, SKIPPING)):
        CALL(pipe, prompts[:1])
        pipe.scheduler = copy.deepcopy(tiny_flux().scheduler)
        with pytest.raises(AttachError, match="replaced by a FlowMatchEuler"):
            CALL(pipe, prompts[:1])


def test_a_pipeline_without_a_denoiser_is_refused(pipe: FluxPipeline) -> None:
    schedule = schedule_of(pipe, SKIPPING)
    pipe.transformer = None
    with pytest.raises(AttachError, match="transformer, transformer_2, unet"):
        adaptcache.attach(pipe, schedule)


def test_another_class_of_denoiser_is_refused(pipe: FluxPipeline) -> None:
    fitted = schedule_of(pipe, SKIPPING)
    other = fitted.model_copy(
        update={"denoiser": fitted.denoiser.model_copy(update={"class_name": "WanTransformer3DModel"})}
    )
    with pytest.raises(ScheduleError, match=r"fitted on a WanTransformer3DModel.*has a FluxTransformer2DModel"):
        adaptcache.attach(pipe, other)


def test_other_weights_warn_or_are_refused(pipe: FluxPipeline) -> None:
    schedule = schedule_of(tiny_flux(seed=5), SKIPPING)
    with pytest.warns(UserWarning, match="other weights"):
        adaptcache.attach(pipe, schedule).close()
    with pytest.raises(ScheduleError, match="other weights"):
        adaptcache.attach(pipe, schedule, strict=True)


def test_another_grid_is_refused_when_strict(pipe: FluxPipeline, prompts: list) -> None:
    with adaptcache.attach(pipe, schedule_of(pipe, SKIPPING), strict=True):
        with pytest.raises(ScheduleError, match="this run has 5 steps"):
            Call(5, CALL.arguments)(pipe, prompts[:1])


@pytest.mark.parametrize("late", [False, True])
def test_a_compiled_denoiser_is_skipped_from_outside(pipe: FluxPipeline, prompts: list, late: bool) -> None:
    made = counted(pipe)
    torch._dynamo.reset()
    if not late:
        pipe.transformer.compile(backend="eager")
    with adaptcache.attach(pipe, schedule_of(pipe, SKIPPING)) as handle:
        if late:
            pipe.transformer.compile(backend="eager")
        CALL(pipe, prompts[:1])
        assert handle.report().computed == SKIPPING
    assert vars(pipe.transformer)["_compiled_call_impl"] is not None
    assert type(vars(pipe.transformer)["_compiled_call_impl"]).__name__ != "ModuleInterceptor"
    assert made[0] <= len(SKIPPING)


def test_a_denoiser_that_was_replaced_is_guarded_at_the_next_run(pipe: FluxPipeline, prompts: list) -> None:
    with adaptcache.attach(pipe, schedule_of(pipe, SKIPPING)) as handle:
        CALL(pipe, prompts[:1])
        pipe.transformer = torch.compile(pipe.transformer, backend="eager")
        CALL(pipe, prompts[:1])
        assert handle.report().computed == SKIPPING
