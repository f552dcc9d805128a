"""What users do to pipelines in the middle of things: the right images come out, or a clear error."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Iterator
from typing import Any

import diffusers
import pytest
import torch
from diffusers.callbacks import SDCFGCutoffCallback
from torch import Tensor

import adaptcache
from adaptcache.errors import AttachError, ScheduleError
from tests.pipelines.setup import Setup, noise
from tests.pipelines.table import built, counted, generated, planned, same

PLAN = [0, 1, 3]


def sibling(setup: Setup) -> Any:
    """A pipeline that has the same denoiser and a scheduler of its own."""
    parts = {**setup.pipe.components, "scheduler": copy.deepcopy(setup.pipe.scheduler)}
    pipe = type(setup.pipe)(**parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def loop(setup: Setup, pipe: Any, x: Tensor, guide: Any = None) -> Iterator[Tensor]:
    """A denoising loop of the caller's own."""
    pipe.scheduler.set_timesteps(setup.steps)
    hidden = setup.prompts[0]["prompt_embeds"]
    for t in pipe.scheduler.timesteps:
        if guide:
            x = guide(pipe, x, t, hidden)
        u = pipe.unet(x, t, encoder_hidden_states=hidden, return_dict=False)[0]
        x = pipe.scheduler.step(u, t, x, return_dict=False)[0]
        yield x


# Callbacks


def test_a_callback_that_calls_the_denoiser_gets_true_outputs_and_disturbs_nothing() -> None:
    setup, seen = built("Stable Diffusion 1.5"), list[Tensor]()

    def looks(pipe: Any, step: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append(pipe.unet(torch.ones(2, 4, 8, 8), t, torch.ones(2, 5, 16), return_dict=False)[0].clone())
        return tensors

    generated(setup, callback_on_step_end=looks)
    true = list(seen)
    seen.clear()
    with adaptcache.attach(setup.pipe, planned(setup, PLAN)) as handle:
        cached = generated(setup)
        assert same(generated(setup, callback_on_step_end=looks), cached)
        assert handle.report().made == len(PLAN)
    assert same(seen, true)


@pytest.mark.parametrize("attached", [False, True], ids=["plain", "with a schedule of its own"])
def test_a_callback_may_run_another_pipeline_with_the_same_denoiser(attached: bool) -> None:
    setup, made = built("Stable Diffusion 1.5"), list[list[Tensor]]()
    other = sibling(setup)
    second = adaptcache.attach(other, planned(setup, [0, 4])) if attached else None
    alone = generated(setup, other)

    def previews(pipe: Any, step: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        made.append(generated(setup, other))
        return tensors

    with adaptcache.attach(setup.pipe, planned(setup, PLAN)) as handle:
        cached = generated(setup)
        assert same(generated(setup, callback_on_step_end=previews), cached)
        assert handle.report().computed == PLAN
    assert len(made) == setup.steps and all(same(image, alone) for image in made)
    if second:
        second.close()


def test_callback_objects_of_diffusers_are_still_asked_what_they_need() -> None:
    setup = built("Stable Diffusion 1.5")
    cutoff = {"callback_on_step_end": SDCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=2)}
    plain = generated(setup, **cutoff)
    with adaptcache.attach(setup.pipe, planned(setup, range(6))):
        assert same(generated(setup, **cutoff), plain)
    with adaptcache.attach(setup.pipe, planned(setup, PLAN)) as handle:
        generated(setup, **cutoff)
    assert handle.report().computed == PLAN


def test_a_callback_that_changes_the_latents_is_obeyed() -> None:
    setup = built("Flux")

    def dims(pipe: Any, step: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        return {"latents": tensors["latents"] * 0.5} if step == 2 else tensors

    plain = generated(setup, callback_on_step_end=dims)
    with adaptcache.attach(setup.pipe, planned(setup, range(6))):
        assert same(generated(setup, callback_on_step_end=dims), plain)
    with adaptcache.attach(setup.pipe, planned(setup, [0, 1, 2, 3, 4])):
        cached = generated(setup, callback_on_step_end=dims)
    assert not same(cached, plain) and torch.allclose(cached[0], plain[0], atol=0.2)


def test_a_pipeline_that_is_told_to_stop_stops_and_the_next_run_is_fresh() -> None:
    setup = built("Flux")

    def stops(pipe: Any, step: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        pipe._interrupt = step == 2
        return tensors

    with adaptcache.attach(setup.pipe, planned(setup, PLAN)) as handle:
        fresh = generated(setup)
        generated(setup, callback_on_step_end=stops)
        assert len(handle.report().calls) == 3 and handle._gate.loop is None
        assert same(generated(setup), fresh)


def test_attaching_and_closing_in_the_middle_of_a_run() -> None:
    setup, handles = built("Flux"), []
    schedule, plain = planned(setup, PLAN), generated(setup)

    def attaches(pipe: Any, step: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == 2:
            handles.append(adaptcache.attach(pipe, schedule))
        return tensors

    def closes(pipe: Any, step: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == 1:
            handles[0].close()
        return tensors

    assert same(generated(setup, callback_on_step_end=attaches), plain)  # from the next run on
    cached = generated(setup)
    assert handles[0].report().computed == PLAN and not same(cached, plain)
    assert same(generated(setup, callback_on_step_end=closes), plain)  # steps 0 and 1 were computed anyway
    assert same(generated(setup), plain)


def test_the_gear_is_not_changed_under_a_run() -> None:
    setup = built("Flux")

    def shifts(pipe: Any, step: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        handle.gear = 0
        return tensors

    with adaptcache.attach(setup.pipe, planned(setup, PLAN)) as handle:
        with pytest.raises(AttachError, match="between runs"):
            generated(setup, callback_on_step_end=shifts)
        handle.gear = 0


# Schedulers


def test_a_scheduler_patched_by_another_library_is_refused_before_anything_is_hooked() -> None:
    setup = built("Flux")
    schedule, step = planned(setup, PLAN), setup.pipe.scheduler.step
    setup.pipe.scheduler.step = lambda *args, **kwargs: step(*args, **kwargs)
    with pytest.raises(AttachError, match=r"step of this FlowMatchEuler.* was replaced"):
        adaptcache.attach(setup.pipe, schedule)
    assert type(setup.pipe) is diffusers.FluxPipeline


@pytest.mark.parametrize("taken", ["before attach", "after attach"])
def test_a_scheduler_patched_after_attach_is_refused_before_it_steps(taken: str) -> None:
    setup = built("Flux")
    scheduler = setup.pipe.scheduler
    step = scheduler.step
    with adaptcache.attach(setup.pipe, planned(setup, PLAN)), counted(setup.pipe) as calls:
        step = scheduler.step if taken == "after attach" else step
        scheduler.step = lambda *args, **kwargs: step(*args, **kwargs)
        with pytest.raises(AttachError, match=r"step of this FlowMatchEuler.* was replaced"):
            generated(setup)
        assert not calls
        del scheduler.step
        generated(setup)
        assert len(calls) == len(PLAN)


def test_a_scheduler_made_from_the_attached_one_is_refused_with_the_cure() -> None:
    setup = built("Flux")
    schedule = planned(setup, PLAN)
    with adaptcache.attach(setup.pipe, schedule):
        setup.pipe.scheduler = type(setup.pipe.scheduler).from_config(setup.pipe.scheduler.config, shift=5.0)
        with pytest.raises(AttachError, match=r"close\(\) the handle and attach again"):
            generated(setup)
    with adaptcache.attach(setup.pipe, schedule) as handle:
        generated(setup)
    assert handle.report().skipped > 0


@pytest.mark.filterwarnings("ignore:.*was fitted on 6 other steps")
@pytest.mark.parametrize(
    ("name", "grid", "steps"),
    [
        ("Flux", {"sigmas": [1.0, 0.9, 0.4, 0.1]}, 4),
        ("SDXL", {"timesteps": [900, 700, 500, 300, 100]}, 5),
        ("SDXL", {"denoising_end": 0.5}, 2),
    ],
)
def test_grids_of_the_callers_own_are_followed(name: str, grid: dict[str, Any], steps: int) -> None:
    setup = built(name)
    full = generated(setup, **grid)
    with adaptcache.attach(setup.pipe, planned(setup, range(6))) as handle:
        assert same(generated(setup, **grid), full) or handle.report().skipped
    assert len(handle.report().calls) == steps


def test_settings_of_the_scheduler_changed_between_runs_are_seen() -> None:
    setup = built("Flux")
    schedule = adaptcache.calibrate(
        setup.pipe, setup.prompts[:1], num_inference_steps=6, budget=0.5, pipe_kwargs=setup.call
    )
    with adaptcache.attach(setup.pipe, schedule) as handle:
        generated(setup)
        assert handle.report().evidence == "calibrated"
        setup.pipe.scheduler.register_to_config(base_shift=2.0)
        with pytest.warns(UserWarning, match="planned anew"):
            generated(setup)
        assert handle.report().evidence == "extrapolated" and handle.report().made == 3


def test_a_server_that_sees_many_grids_keeps_few_of_them() -> None:
    setup = built("Flux")
    schedule = planned(setup, [0])
    with adaptcache.attach(setup.pipe, schedule) as handle, pytest.warns(UserWarning, match="other steps"):
        for steps in range(2, 40):
            handle._runner.on_run_start(tuple(1 - i / steps for i in range(steps)))
        assert len(handle._runner.rules) == 32


# Pipelines that share parts


def test_a_pipeline_made_from_an_attached_one_is_of_its_true_class() -> None:
    setup = built("Stable Diffusion 1.5")
    with adaptcache.attach(setup.pipe, planned(setup, PLAN)):
        other = diffusers.AutoPipelineForImage2Image.from_pipe(setup.pipe)
        assert type(other) is diffusers.StableDiffusionImg2ImgPipeline
        assert type(diffusers.StableDiffusionPipeline.from_pipe(setup.pipe)) is type(setup.pipe)
        with pytest.raises(AttachError, match=r"DDIMScheduler of this pipeline is attached already.*scheduler = DDIM"):
            adaptcache.attach(other, planned(setup, PLAN))
        other.scheduler = diffusers.DDIMScheduler.from_config(other.scheduler.config)
        adaptcache.attach(other, planned(setup, PLAN)).close()


def test_loops_that_take_turns_on_one_denoiser_are_told_to_stop() -> None:
    setup = built("Stable Diffusion 1.5")
    other = sibling(setup)
    one, two = loop(setup, setup.pipe, noise(1, 1, 4, 8, 8)), loop(setup, other, noise(2, 1, 4, 8, 8))
    with (
        torch.no_grad(),
        adaptcache.attach(setup.pipe, planned(setup, PLAN)) as first,
        adaptcache.attach(other, planned(setup, [0, 2])) as second,
        pytest.raises(AttachError, match="take turns in one thread need a denoiser each"),
        first.loop(),
        second.loop(),
    ):
        next(one), next(two)


def test_a_callback_that_calls_its_own_pipeline_is_refused_unless_it_pauses_the_schedule() -> None:
    setup = built("Stable Diffusion 1.5")

    def again(pipe: Any, step: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == 2:
            made.append(generated(setup))
        return tensors

    def paused(*args: Any) -> dict[str, Any]:
        with handle.paused():
            return again(*args)

    made: list[list[Tensor]] = []
    plain = generated(setup)
    with adaptcache.attach(setup.pipe, planned(setup, PLAN)) as handle:
        cached = generated(setup)
        with pytest.raises(AttachError, match="called by a callback of its own call"):
            generated(setup, callback_on_step_end=again)
        assert same(generated(setup, callback_on_step_end=paused), cached) and same(made[0], plain)
        assert same(generated(setup), cached)


def test_a_closed_handle_follows_no_loop_and_leaves_nothing() -> None:
    setup = built("Stable Diffusion 1.5")
    before = set(vars(setup.pipe.unet))
    handle = adaptcache.attach(setup.pipe, planned(setup, PLAN))
    handle.close()
    with pytest.raises(AttachError, match="closed"), handle.loop():
        pass
    assert set(vars(setup.pipe.unet)) == before


def test_tasks_that_use_one_pipeline_at_once_are_refused_and_the_first_is_right() -> None:
    setup = built("Flux")

    async def together() -> list[Any]:
        tasks = [asyncio.to_thread(generated, setup) for _ in range(3)]
        return await asyncio.gather(*tasks, return_exceptions=True)

    with adaptcache.attach(setup.pipe, planned(setup, PLAN)):
        right = generated(setup)
        results = asyncio.run(together())
    done = [result for result in results if not isinstance(result, Exception)]
    assert done and all(same(result, right) for result in done)
    assert all(isinstance(result, (list, AttachError)) for result in results)


def test_an_error_inside_of_the_scheduler_leaves_nothing_behind() -> None:
    setup = built("Flux")

    class Fails(type(setup.pipe.scheduler)):  # type: ignore[misc]
        left = 10**9

        def step(self, model_output: Any, timestep: Any, sample: Any, **more: Any) -> Any:
            Fails.left -= 1
            if not Fails.left:
                raise ZeroDivisionError
            return super().step(model_output, timestep, sample, **more)

    setup.pipe.scheduler.__class__ = Fails
    schedule = planned(setup, PLAN)
    Fails.left = 3
    with adaptcache.attach(setup.pipe, schedule) as handle:
        with pytest.raises(ZeroDivisionError):
            generated(setup)
        assert handle._gate.loop is None and not handle._runner.history.streams
        first = generated(setup)
        assert same(generated(setup), first)


# Modes


def test_inference_mode_and_its_absence_give_the_same_bits() -> None:
    setup = built("Flux")
    with adaptcache.attach(setup.pipe, planned(setup, PLAN)):
        cached = generated(setup)
        with torch.inference_mode():
            assert same(generated(setup), cached)
        assert same(generated(setup), cached)


def test_under_autocast_the_forecast_has_the_dtype_of_the_outputs() -> None:
    setup = built("Flux")
    with adaptcache.attach(setup.pipe, planned(setup, PLAN)) as handle:
        cached = generated(setup)
        with torch.autocast("cpu", torch.bfloat16):
            half = generated(setup)
        assert handle.report().computed == PLAN
    assert torch.allclose(half[0].float(), cached[0], atol=0.2)


def test_gradients_go_through_a_cached_run() -> None:
    setup = built("Stable Diffusion 1.5")
    x0, along = noise(1, 1, 4, 8, 8), noise(2, 1, 4, 8, 8)

    def end(x: Tensor) -> Tensor:
        return list(loop(setup, setup.pipe, x))[-1].square().sum()

    with adaptcache.attach(setup.pipe, planned(setup, PLAN)) as handle, handle.loop():
        leaf = x0.clone().requires_grad_(True)
        end(leaf).backward()
        assert handle.report().computed == PLAN
        with torch.no_grad():
            slope = (end(x0 + 1e-2 * along) - end(x0 - 1e-2 * along)) / 2e-2
    assert float((leaf.grad * along).sum()) == pytest.approx(float(slope), rel=2e-2)


def test_calls_that_guide_the_latents_by_a_gradient_are_made() -> None:
    setup = built("Stable Diffusion 1.5")

    def guide(pipe: Any, x: Tensor, t: Any, hidden: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            loss = pipe.unet(x, t, encoder_hidden_states=hidden, return_dict=False)[0].square().mean()
            slope = torch.autograd.grad(loss, x)[0]
        return (x - slope).detach()

    with torch.no_grad():
        plain = list(loop(setup, setup.pipe, noise(1, 1, 4, 8, 8), guide))
        with (
            adaptcache.attach(setup.pipe, planned(setup, PLAN)) as handle,
            counted(setup.pipe) as calls,
            handle.loop(),
        ):
            cached = list(loop(setup, setup.pipe, noise(1, 1, 4, 8, 8), guide))
    assert len(calls) == setup.steps + len(PLAN) == handle.report().made
    assert torch.equal(cached[1], plain[1]) and torch.allclose(cached[-1], plain[-1], atol=0.5)


def test_free_u_may_be_switched_while_attached() -> None:
    setup = built("Stable Diffusion 1.5")
    with adaptcache.attach(setup.pipe, planned(setup, PLAN)) as handle:
        cached = generated(setup)
        setup.pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
        assert not same(generated(setup), cached) and handle.report().computed == PLAN
        setup.pipe.disable_freeu()
        assert same(generated(setup), cached)


def test_several_images_a_prompt_with_a_generator_each_are_what_they_are_alone() -> None:
    setup = built("Flux")
    with adaptcache.attach(setup.pipe, planned(setup, PLAN)):
        seeds = [torch.Generator().manual_seed(k) for k in range(3)]
        three = generated(setup, generator=seeds, num_images_per_prompt=3)[0]
        alone = [generated(setup, generator=torch.Generator().manual_seed(k))[0] for k in range(3)]
    torch.testing.assert_close(three, torch.cat(alone), rtol=1e-4, atol=1e-4)


# What nobody measured


def test_another_cache_on_top_is_warned_of_or_refused_and_never_calibrated() -> None:
    setup = built("Flux")
    schedule = planned(setup, PLAN)
    setup.pipe.transformer.enable_cache(diffusers.FirstBlockCacheConfig(threshold=0.1))
    with pytest.warns(UserWarning, match="on top of FirstBlockCache") as caught:
        with adaptcache.attach(setup.pipe, schedule):
            generated(setup)
    assert len(caught) == 1
    with pytest.raises(ScheduleError, match="turn one of the two off"):
        adaptcache.attach(setup.pipe, schedule, strict=True)
    with pytest.raises(ValueError, match=r"FirstBlockCache is on .* would not be full"):
        adaptcache.calibrate(setup.pipe, setup.prompts, num_inference_steps=6, budget=0.5, pipe_kwargs=setup.call)
    setup.pipe.transformer.disable_cache()
    with adaptcache.attach(setup.pipe, schedule, strict=True):
        setup.pipe.transformer.enable_cache(diffusers.FirstBlockCacheConfig(threshold=0.1))
        with pytest.raises(ScheduleError, match="on top of FirstBlockCache"):
            generated(setup)


def test_a_call_with_another_guidance_or_size_is_warned_of_once_and_said_in_the_report() -> None:
    setup = built("Stable Diffusion 1.5")
    schedule = adaptcache.calibrate(
        setup.pipe, setup.prompts[:1], num_inference_steps=6, budget=0.5, pipe_kwargs=setup.call
    )
    with adaptcache.attach(setup.pipe, schedule) as handle:
        with pytest.warns(UserWarning, match="guidance_scale 7.5 and now 3.0") as caught:
            generated(setup, guidance_scale=3.0)
            generated(setup, guidance_scale=2.0)
        assert len(caught) == 1 and handle.report().evidence == "extrapolated"
        generated(setup)
        assert handle.report().evidence == "calibrated"
        with pytest.warns(UserWarning, match="height 16 and now 24"):
            generated(setup, height=24)
    with adaptcache.attach(setup.pipe, schedule, strict=True):
        with pytest.raises(ScheduleError, match="another guidance"):
            generated(setup, guidance_scale=3.0)
        assert len(generated(setup)) == 1


def test_a_wrapped_denoiser_that_hides_its_configuration_is_one_clear_line() -> None:
    setup = built("Flux")
    schedule = planned(setup, PLAN)
    setup.pipe.transformer = torch.nn.DataParallel(setup.pipe.transformer)
    with pytest.raises(AttachError, match="DataParallel has no config"):
        adaptcache.attach(setup.pipe, schedule)
