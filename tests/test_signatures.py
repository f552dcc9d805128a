"""Pipelines whose `__call__` does not name what it takes: subclasses with **kwargs, modular ones."""

import diffusers
import pytest
from diffusers.modular_pipelines.z_image.modular_blocks_z_image import ZImageAutoBlocks

import adaptcache
from tests.alike import assert_alike
from tests.pipelines.setup import noise
from tests.pipelines.table import built, counted, planned

CALL = {"height": 16, "width": 16, "guidance_scale": 3.5}


class Preset(diffusers.FluxPipeline):
    """What people write to have defaults of their own."""

    def __call__(self, *args, **kwargs):
        return super().__call__(*args, **{**CALL, **kwargs})


def preset_of(pipe):
    made = Preset(**pipe.components)
    made.set_progress_bar_config(disable=True)
    return made


def calibrated(pipe, prompts, **call):
    return adaptcache.calibrate(pipe, prompts[:2], num_inference_steps=6, budget=0.5, pipe_kwargs=call)


def test_a_subclass_is_calibrated_with_the_steps_that_were_asked_for():
    setup = built("Flux")
    assert len(calibrated(preset_of(setup.pipe), setup.prompts).grid.times) == 6


def test_a_subclass_is_calibrated_with_the_arguments_of_the_call():
    setup = built("Flux")
    schedule = calibrated(preset_of(setup.pipe), setup.prompts, **CALL)
    assert_alike(schedule.rules, calibrated(setup.pipe, setup.prompts, **CALL).rules)


def test_a_subclass_draws_the_noise_of_the_seed_as_its_base_does():
    setup = built("Flux")
    schedule = calibrated(preset_of(setup.pipe), setup.prompts)
    assert_alike(schedule.rules, calibrated(setup.pipe, setup.prompts, **CALL).rules)


def test_another_guidance_is_seen_in_a_call_of_a_subclass():
    setup = built("Flux")
    schedule = planned(setup, [0, 1, 3]).model_copy(update={"made": {"call": CALL}})
    pipe = preset_of(setup.pipe)
    with adaptcache.attach(pipe, schedule) as handle:
        pipe(**setup.prompts[0], height=16, width=16, guidance_scale=9.0, num_inference_steps=6,
             output_type="latent")  # fmt: skip
        assert handle.report().evidence == "extrapolated"


def timed(call):
    """What people write to time a pipeline, without `functools.wraps`."""

    def inner(*args, **kwargs):
        return call(*args, **kwargs)

    return inner


class Timed(diffusers.FluxPipeline):
    __call__ = timed(diffusers.FluxPipeline.__call__)


class Renamed(diffusers.FluxPipeline):
    """Names some arguments of its own, and hands the others on."""

    def __call__(self, quality="high", **options):
        options.setdefault("num_inference_steps", {"high": 9, "low": 3}[quality])
        return super().__call__(**options)


@pytest.mark.parametrize("kind", [Timed, Renamed])
def test_a_call_that_names_little_is_calibrated_as_its_base_is_and_followed(kind):
    setup = built("Flux")
    other = kind(**setup.pipe.components)
    other.set_progress_bar_config(disable=True)
    schedule = calibrated(other, setup.prompts, **CALL)
    assert_alike(schedule.rules, calibrated(setup.pipe, setup.prompts, **CALL).rules)
    with adaptcache.attach(other, schedule) as handle, counted(other) as calls:
        other(**setup.prompts[0], **CALL, num_inference_steps=6, output_type="latent")
        assert len(calls) == handle.report().made == 3 and handle.report().evidence == "calibrated"


@pytest.fixture
def modular():
    """A modular pipeline without the blocks that make embeddings and images."""
    parts = built("Z-Image").pipe
    blocks = ZImageAutoBlocks()
    for name in ("text_encoder", "vae_encoder", "decode"):
        blocks.sub_blocks.pop(name)
    pipe = blocks.init_pipeline()
    pipe.update_components(transformer=parts.transformer, scheduler=parts.scheduler)
    return pipe


@pytest.mark.parametrize("where", ["call", "prompts"])
def test_a_modular_pipeline_is_calibrated_or_refused_before_any_run(modular, where):
    size = {"height": 64, "width": 64}
    rows = [
        {"prompt_embeds": [noise(10 * k, 5, 16)], "negative_prompt_embeds": [noise(10 * k + 1, 5, 16)]}
        for k in range(2)
    ]
    rows, call = (rows, size) if where == "call" else ([row | size for row in rows], {})
    with counted(modular) as calls:
        try:
            schedule = adaptcache.calibrate(modular, rows, num_inference_steps=6, budget=0.5, pipe_kwargs=call)
        except (TypeError, ValueError, RuntimeError) as error:
            assert "modular pipeline" in str(error).lower() and "\n" not in str(error)
            assert not calls
            return
    assert len(schedule.grid.times) == 6
