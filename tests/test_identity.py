"""What a pipeline makes depends on more than its weights: whether a LoRA is on, how strong, a VAE's factor."""

import diffusers
import pytest
import torch
from peft import LoraConfig

import adaptcache
from adaptcache.cache import Cache
from adaptcache.errors import ScheduleError
from tests.alike import assert_alike
from tests.pipelines.flux import flux_parts, flux_prompts

PROMPTS = flux_prompts()
CALL = {"height": 16, "width": 16}
CHANGES = {
    "at another strength": lambda pipe: pipe.transformer.set_adapters(["style"], [0.05]),
    "disabled": lambda pipe: pipe.transformer.disable_lora(),
}
changed = pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)


@pytest.fixture
def pipe():
    """A pipeline with a strong LoRA."""
    torch.manual_seed(0)
    made = diffusers.FluxPipeline(**flux_parts())
    made.set_progress_bar_config(disable=True)
    layers = ["to_q", "to_k", "to_v", "ff.net.0.proj", "ff.net.2"]
    config = LoraConfig(r=4, lora_alpha=256, init_lora_weights=False, target_modules=layers)
    made.transformer.add_adapter(config, adapter_name="style")
    return made


def calibrated(pipe, store=None, **more):
    return adaptcache.calibrate(
        pipe, PROMPTS[:2], num_inference_steps=6, budget=0.5, pipe_kwargs=CALL, cache=store, **more
    )


@changed
def test_a_profile_kept_of_a_lora_is_not_taken_when_it_is(pipe, tmp_path, change):
    store = Cache(tmp_path)
    calibrated(pipe, store)
    change(pipe)
    assert_alike(calibrated(pipe, store).rules, calibrated(pipe).rules)


@changed
def test_strict_refuses_the_schedule_of_a_lora_when_it_is(pipe, change):
    schedule = calibrated(pipe)
    change(pipe)
    with pytest.raises(ScheduleError, match=r"(?i)LoRA|adapter|weights"):
        adaptcache.attach(pipe, schedule, strict=True).close()


@changed
def test_a_schedule_of_a_lora_is_not_calibrated_when_it_is(pipe, change):
    schedule = calibrated(pipe)
    change(pipe)
    with adaptcache.attach(pipe, schedule) as handle:
        pipe(**PROMPTS[0], **CALL, num_inference_steps=6, output_type="latent")
    assert handle.report().evidence != "calibrated"


def test_images_kept_of_one_scaling_factor_are_not_compared_with_those_of_another(pipe, tmp_path):
    store = Cache(tmp_path)
    calibrated(pipe, store, eval_prompts=PROMPTS[2:])
    pipe.vae.register_to_config(scaling_factor=0.2)
    kept = calibrated(pipe, store, eval_prompts=PROMPTS[2:]).evidence
    assert kept.psnr == calibrated(pipe, eval_prompts=PROMPTS[2:]).evidence.psnr
