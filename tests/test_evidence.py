"""`report().evidence` says "calibrated" only of what was measured: these weights, this sampler, this call."""

import warnings

import diffusers
import pytest
import torch
from peft import LoraConfig

import adaptcache
from adaptcache.errors import ScheduleError
from tests.pipelines.table import built, generated, planned

PLAN = [0, 1, 3]


def other_transformer(pipe):
    torch.manual_seed(7)
    return diffusers.FluxTransformer2DModel.from_config(pipe.transformer.config).eval()


def loads_weights(pipe):
    pipe.transformer.load_state_dict(other_transformer(pipe).state_dict())


def replaces_the_transformer(pipe):
    pipe.transformer = other_transformer(pipe)


def adds_a_lora(pipe):
    config = LoraConfig(r=4, lora_alpha=64, init_lora_weights=False, target_modules=["to_q", "to_k", "to_v"])
    pipe.transformer.add_adapter(config, adapter_name="style")


CHANGES = {"weights": loads_weights, "a transformer": replaces_the_transformer, "a LoRA": adds_a_lora}
changed = pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@changed
@pytest.mark.parametrize("when", ["before attach", "after attach", "after a run"])
def test_other_weights_are_not_calibrated(change, when):
    setup = built("Flux")
    schedule = planned(setup, PLAN)
    if when == "before attach":
        change(setup.pipe)
    with adaptcache.attach(setup.pipe, schedule) as handle:
        if when == "after a run":
            generated(setup)
        if when != "before attach":
            change(setup.pipe)
        generated(setup)
        assert handle.report().evidence != "calibrated"


@changed
def test_strict_refuses_a_run_of_weights_that_came_after_attach(change):
    setup = built("Flux")
    with adaptcache.attach(setup.pipe, planned(setup, PLAN), strict=True):
        change(setup.pipe)
        with pytest.raises(ScheduleError, match=r"weights|LoRA|transformer"):
            generated(setup)


@pytest.mark.parametrize("strict", [False, True])
def test_noise_that_was_not_calibrated_with_is_extrapolated_and_refused_by_strict(strict):
    setup = built("Stable Diffusion 1.5")
    schedule = adaptcache.calibrate(
        setup.pipe, setup.prompts[:2], num_inference_steps=6, budget=0.5, pipe_kwargs=setup.call
    )
    with adaptcache.attach(setup.pipe, schedule, strict=strict) as handle:
        if strict:
            with pytest.raises(ScheduleError, match="eta"):
                generated(setup, eta=1.0)
        else:
            generated(setup, eta=1.0)
            assert handle.report().evidence == "extrapolated"
