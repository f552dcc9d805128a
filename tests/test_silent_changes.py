"""What changes without a word: values behind `.data`, settings of the pipeline, what callbacks do: it is reported."""

import gc
import warnings
import weakref

import numpy as np
import pytest
import torch
from diffusers.training_utils import EMAModel

import adaptcache
from adaptcache.engines.diffusers.compatibility import guidance_of
from adaptcache.errors import AttachError, ScheduleError
from tests.pipelines.table import built, counted, generated, planned, same

PLAN = [0, 1, 3]
SD = "Stable Diffusion 1.5"


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def all_weights(pipe):
    for weight in pipe.transformer.parameters():
        weight.data.mul_(1.1)


def ema_weights(pipe):
    average = EMAModel(pipe.transformer.parameters())
    average.shadow_params = [1.1 * one for one in average.shadow_params]
    average.copy_to(pipe.transformer.parameters())


@pytest.mark.parametrize("change", [all_weights, ema_weights])
def test_weights_that_are_written_behind_the_back_of_torch_are_seen(change):
    setup = built("Flux")
    with adaptcache.attach(setup.pipe, planned(setup, PLAN)) as handle:
        generated(setup)
        assert handle.report().evidence == "calibrated"
        change(setup.pipe)
        generated(setup)
        assert handle.report().evidence == "extrapolated"


@pytest.mark.parametrize("when", ["before attach", "after attach"])
def test_another_boundary_of_two_experts_was_not_measured(when):
    setup = built("Wan 2.2")
    options = {"budget": 0.5, "pipe_kwargs": setup.call, "effort": 0, "progress": False}
    schedule = adaptcache.calibrate(setup.pipe, setup.prompts[:1], setup.steps, **options)
    with pytest.raises(ScheduleError, match=r"boundary_ratio .* and now 0.3"):
        if when == "before attach":
            setup.pipe.register_to_config(boundary_ratio=0.3)
        with adaptcache.attach(setup.pipe, schedule, strict=True) as handle:
            generated(setup)
            assert handle.report().evidence == "calibrated"
            setup.pipe.register_to_config(boundary_ratio=0.3)
            generated(setup)


def scales_guidance(pipe, step, t, tensors):
    pipe._guidance_scale = 1.5 + step
    return tensors


def dims(pipe, step, t, tensors):
    return {"latents": tensors["latents"] * 0.5}


def dims_in_place(pipe, step, t, tensors):
    tensors["latents"].mul_(0.5)
    return {}


def sets_a_part(pipe, step, t, tensors):
    pipe.unet.register_to_config(act_fn="gelu")
    return tensors


@pytest.mark.parametrize("callback", [scales_guidance, dims, dims_in_place, sets_a_part])
def test_what_a_callback_changes_was_not_measured(callback):
    setup, other = built(SD), built(SD)
    with adaptcache.attach(setup.pipe, planned(setup, PLAN)) as handle:
        generated(setup, callback_on_step_end=callback)
        assert handle.report().evidence == "extrapolated" and handle.report().computed == PLAN
    with adaptcache.attach(other.pipe, planned(other, PLAN), strict=True):
        with pytest.raises(ScheduleError, match="has a callback that changed"):
            generated(other, callback_on_step_end=callback)


def test_callbacks_that_only_look_or_copy_change_nothing():
    setup = built(SD)

    def copies(pipe, step, t, tensors):
        return {"latents": tensors["latents"].clone()}

    with adaptcache.attach(setup.pipe, planned(setup, PLAN), strict=True) as handle:
        plain = generated(setup)
        for callback in (copies, lambda pipe, step, t, tensors: tensors, lambda *_: {}):
            assert same(generated(setup, callback_on_step_end=callback), plain)
            assert handle.report().evidence == "calibrated"


@pytest.mark.parametrize("at", [0, 1])
def test_latents_that_a_callback_resizes_are_computed_from_there_or_refused(at):
    setup = built(SD)

    def enlarges(pipe, step, t, tensors):
        return {"latents": tensors["latents"].repeat(1, 1, 2, 2)} if step == at else {}

    full = generated(setup, callback_on_step_end=enlarges)
    with adaptcache.attach(setup.pipe, planned(setup, [0, 1, 3])) as handle:
        assert same(generated(setup, callback_on_step_end=enlarges), full)
        assert handle.report().evidence == "extrapolated" and handle.report().skipped == 0


def test_a_pipeline_that_is_deleted_while_attached_is_freed():
    setup = built("Flux")
    plain = type(setup.pipe).__call__
    adaptcache.attach(setup.pipe, planned(setup, PLAN))  # by those who keep no handle
    generated(setup)
    kind, kept = type(setup.pipe), [weakref.ref(setup.pipe), weakref.ref(setup.pipe.transformer)]
    del setup
    gc.collect()
    assert [one() for one in kept] == [None, None] and kind.__call__ is plain


def test_who_keeps_no_handle_stays_attached():
    setup = built("Flux")
    adaptcache.attach(setup.pipe, planned(setup, PLAN))
    gc.collect()
    setup.pipe.transformer = type(setup.pipe.transformer).from_config(setup.pipe.transformer.config)
    gc.collect()
    with counted(setup.pipe) as calls:
        generated(setup)
    assert len(calls) == len(PLAN)


def test_the_guidance_of_theory_is_that_of_guiders_and_of_frames_too():
    assert guidance_of(built("AnimaModularPipeline").pipe, {}) == 4.0


def test_an_instant_schedule_that_was_kept_is_for_one_guidance():
    setup = built(SD)
    with adaptcache.attach(setup.pipe, speed=2) as handle:
        generated(setup, num_inference_steps=24, guidance_scale=4.0)
        generated(setup, num_inference_steps=24, guidance_scale=3.0)
        assert handle.report().evidence == "theory"
    with adaptcache.attach(setup.pipe, handle.schedule) as again:
        generated(setup, num_inference_steps=24, guidance_scale=3.0)
        assert again.report().evidence == "theory"
        with pytest.warns(UserWarning, match="guidance 3.0 and now 4"):
            generated(setup, num_inference_steps=24, guidance_scale=4.0)
        assert again.report().evidence == "extrapolated"


def test_nothing_is_said_of_what_did_not_run():
    setup = built("Flux")
    with adaptcache.attach(setup.pipe, planned(setup, PLAN)) as handle:
        assert handle.report().evidence == "none"


@pytest.mark.parametrize(
    ("name", "fitted", "run"),
    [
        (SD, {"height": 24, "width": 24}, {"height": None, "width": None}),  # what the pipeline takes by itself
        (SD, {"height": None, "width": None}, {"height": 24, "width": 24}),
        (f"{SD[:-4]} image-to-image", {}, {"image": torch.rand(1, 3, 32, 32)}),
    ],
)
def test_a_size_that_no_number_tells_was_not_measured(name, fitted, run):
    setup = built(name)
    options = {"speed": 2, "pipe_kwargs": {**setup.call, **fitted}, "effort": 0, "progress": False}
    schedule = adaptcache.calibrate(setup.pipe, setup.prompts[:2], setup.steps, **options)
    with adaptcache.attach(setup.pipe, schedule) as handle:
        generated(setup, **fitted, num_images_per_prompt=2)
        assert handle.report().evidence == "calibrated"
        with pytest.warns(UserWarning, match=r"not measured at this size: .* latents of shape \[4, .*, not \[4, "):
            generated(setup, **run)
        assert handle.report().evidence == "extrapolated"
    with adaptcache.attach(setup.pipe, schedule, strict=True), pytest.raises(ScheduleError, match="latents of shape"):
        generated(setup, **run)


@pytest.mark.parametrize("by_prompt", [True, False])
def test_content_that_makes_another_mode_of_a_pipeline_is_missed(by_prompt):
    setup = built("Flux Kontext")
    call, options = dict(setup.call), {"speed": 2, "effort": 0, "progress": False}
    rows = [{**row, "image": call["image"]} for row in setup.prompts[:2]] if by_prompt else setup.prompts[:2]
    schedule = adaptcache.calibrate(
        setup.pipe,
        rows,
        setup.steps,
        pipe_kwargs={k: v for k, v in call.items() if k != "image" or not by_prompt},
        **options,
    )
    with adaptcache.attach(setup.pipe, schedule) as handle:
        generated(setup, image=call["image"].flip(-1), latents=torch.randn(1, 16, 16))
        assert handle.report().evidence == "calibrated"
        with pytest.warns(UserWarning, match="fitted with image, which this call has not"):
            generated(setup, image=None)
        assert handle.report().evidence == "extrapolated"
        with pytest.warns(UserWarning, match="guidance_scale 3.5 and now 4.5"):
            generated(setup, guidance_scale=np.float32(4.5))


def test_a_number_is_one_whoever_made_it():
    setup = built(SD)
    with adaptcache.attach(setup.pipe, speed=1) as handle:
        for scale in (torch.tensor(4.0), np.float32(4.0)):
            generated(setup, guidance_scale=scale)
            assert handle.schedule.made["guidance"] == 4.0
        with pytest.raises(ScheduleError, match="adds noise"):
            generated(setup, eta=np.float32(0.5))


@pytest.mark.parametrize("pipe", ["black-forest-labs/FLUX.1-dev", None, torch.nn.Linear(1, 1), torch.nn.Linear])
def test_what_is_no_pipeline_is_named(pipe):
    name = getattr(pipe, "__name__", type(pipe).__name__)
    with pytest.raises(AttachError, match=rf"got (the class )?{name}.*from_pretrained"):
        adaptcache.attach(pipe, speed=2)


def test_a_gear_that_is_no_number_is_named():
    setup = built("Flux")
    with pytest.raises(LookupError, match="no gear 'fast'"):
        adaptcache.attach(setup.pipe, planned(setup, PLAN), gear="fast")
