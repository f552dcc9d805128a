"""Guidance that makes more or fewer calls in the middle of a run, and what stands in for a skipped call."""

from dataclasses import replace

import diffusers
import pytest
import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput

import adaptcache
from adaptcache.engines.diffusers.gate import OutputPlaceholders, shape_of_latents
from tests.pipelines.table import built, counted, generated, planned
from tests.pipelines.unet import sd_call, sd_parts


def guidance_ends(pipe, step, timestep, tensors):
    """Drops the unconditional half of the batch after step 3, as the documentation of diffusers shows."""
    if step == 3:
        pipe._guidance_scale = 0.0
        tensors["prompt_embeds"] = tensors["prompt_embeds"].chunk(2)[-1]
    return tensors


def perturbed_attention():
    pipe = diffusers.StableDiffusionPAGPipeline(**sd_parts(), pag_applied_layers=["mid"])
    setup = built("Stable Diffusion 1.5")
    pipe.set_progress_bar_config(disable=True)
    pipe.unet.eval()
    return replace(setup, pipe=pipe, call=sd_call() | {"pag_scale": 2.0})


def sd(**more):
    setup = built("Stable Diffusion 1.5")
    return replace(setup, steps=8, call=setup.call | more)


def other(name, **more):
    setup = built(name)
    return replace(setup, steps=8, call=setup.call | more)


SETUPS = {  # and the denoiser calls at each of the 8 steps
    "batched guidance ends": (
        lambda: sd(
            callback_on_step_end=guidance_ends,
            callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"],
        ),
        [1] * 8,
    ),
    "guidance in turn ends": (lambda: other("Lumina 2", cfg_trunc_ratio=0.3), [2, 2, 1, 1, 1, 1, 1, 1]),
    "guidance of lists ends": (lambda: other("Z-Image", cfg_truncation=0.5), [1] * 8),
    "guidance begins late": (
        lambda: other("ACE-Step", cfg_interval_start=0.3, cfg_interval_end=1.0),
        [1] * 8,
    ),
    "a layer is skipped for some steps": (
        lambda: other(
            "Stable Diffusion 3",
            skip_guidance_layers=[0],
            skip_layer_guidance_start=0.2,
            skip_layer_guidance_stop=0.7,
        ),
        [1, 1, 2, 2, 2, 2, 1, 1],
    ),
    "perturbed attention": (lambda: replace(perturbed_attention(), steps=8), [1] * 8),
}
everywhere = pytest.mark.parametrize("name", SETUPS)


@everywhere
def test_the_full_run_has_the_branches_we_think(name):
    setup = SETUPS[name][0]()
    plain = generated(setup)
    with adaptcache.attach(setup.pipe, planned(setup, range(8))) as handle:
        assert all(torch.equal(a, b) for a, b in zip(generated(setup), plain, strict=True))
    assert [len(branches) for branches in handle.report().calls] == SETUPS[name][1]


@everywhere
@pytest.mark.parametrize("plan", [[0, 1, 5], [0, 3], [0, 7], [0]], ids=str)
def test_skipped_steps_call_nothing_wherever_guidance_changes(name, plan):
    setup = SETUPS[name][0]()
    with adaptcache.attach(setup.pipe, planned(setup, plan)) as handle, counted(setup.pipe) as calls:
        made = generated(setup)
    assert handle.report().computed == plan
    assert len(calls) == sum(SETUPS[name][1][i] for i in plan)
    assert all(tensor.isfinite().all() for tensor in made)


def test_a_controlnet_is_skipped_with_its_denoiser():
    setup = built("Stable Diffusion ControlNet")
    calls = []
    hook = setup.pipe.controlnet.register_forward_hook(lambda *_: calls.append(1))
    with adaptcache.attach(setup.pipe, planned(setup, [0, 2])) as handle:
        calls.clear()
        generated(setup)
    hook.remove()
    assert len(calls) == 2 and handle.report().made == 2


def found(given, output, wanted):
    stand_ins = OutputPlaceholders()
    stand_ins.kept[False, 0] = shape_of_latents([given], {}), output
    return stand_ins.find(False, 1, shape_of_latents([wanted], {}))


def test_a_stand_in_is_what_was_returned_where_the_shape_is_the_same():
    output = torch.zeros(2, 3)
    assert found(torch.zeros(2, 5), output, torch.ones(2, 5))[0] is output


def test_a_stand_in_is_cut_or_repeated_to_the_samples_wanted():
    sample = torch.arange(4.0).reshape(2, 2)
    (cut,) = found(torch.zeros(2, 5), (sample,), torch.zeros(1, 5))
    assert torch.equal(cut[0], sample[:1])
    (more,) = found(torch.zeros(2, 5), Transformer2DModelOutput(sample=sample), torch.zeros(4, 5))
    assert torch.equal(more.sample, sample.repeat(2, 1)) and isinstance(more, Transformer2DModelOutput)
    (listed,) = found([torch.zeros(5)] * 2, ([sample[0], sample[1]], {}), [torch.zeros(5)])
    assert len(listed[0]) == 1 and torch.equal(listed[0][0], sample[0])
    (residuals,) = found(torch.zeros(2, 5), ([sample, sample], sample), torch.zeros(1, 5))
    assert [len(residuals[0]), len(residuals[0][0]), len(residuals[1])] == [2, 1, 1]


def test_there_is_no_stand_in_for_latents_of_another_size():
    assert found(torch.zeros(2, 5), torch.zeros(2, 5), torch.zeros(2, 6)) == ()
    assert found(torch.zeros(2, 5), torch.zeros(3, 5), torch.zeros(4, 5)) == ()
