"""Modular pipelines do all that classic ones do: one that is made of the same parts gives the same schedule."""

from types import SimpleNamespace

import diffusers
import pytest
import torch
from diffusers import guiders
from diffusers.hooks import LayerSkipConfig, SmoothedEnergyGuidanceConfig

import adaptcache
from adaptcache.comparison.baselines.caches import FirstBlock
from adaptcache.engines.diffusers.calls import named_inputs
from adaptcache.errors import AttachError, ScheduleError
from tests.pipelines.setup import noise
from tests.pipelines.table import built, counted

STEPS = 8
ENDS = ("text_encoder", "vae_encoder", "decode")
SKIP = LayerSkipConfig(indices=[0], fqn="transformer_blocks")
NO_MLP = LayerSkipConfig(indices=[0], fqn="transformer_blocks", skip_attention=False, skip_ff=True)
SOFT = SmoothedEnergyGuidanceConfig(indices=[0], fqn="transformer_blocks", _query_proj_identifiers=["to_q"])
GUIDERS = {
    "apg": lambda: guiders.AdaptiveProjectedGuidance(3.0, adaptive_projected_guidance_momentum=-0.5),
    "apg mix": lambda: guiders.AdaptiveProjectedMixGuidance(3.0, adaptive_projected_guidance_scale=3.0),
    "auto": lambda: guiders.AutoGuidance(3.0, auto_guidance_config=NO_MLP, dropout=1.0),
    "classifier-free": lambda: guiders.ClassifierFreeGuidance(3.0),
    "classifier-free, in between": lambda: guiders.ClassifierFreeGuidance(3.0, start=0.2, stop=0.7),
    "frequency-decoupled": lambda: guiders.FrequencyDecoupledGuidance([4.0, 2.0]),
    "magnitude-aware": lambda: guiders.MagnitudeAwareGuidance(3.0),
    "perturbed attention": lambda: guiders.PerturbedAttentionGuidance(3.0, perturbed_guidance_config=SKIP),
    "skipped layers": lambda: guiders.SkipLayerGuidance(3.0, skip_layer_config=SKIP),
    "smoothed energy": lambda: guiders.SmoothedEnergyGuidance(3.0, seg_guidance_config=SOFT),
    "tangential": lambda: guiders.TangentialClassifierFreeGuidance(3.0),
    "zero star": lambda: guiders.ClassifierFreeZeroStarGuidance(3.0, zero_init_steps=0),
}


def modular(blocks, parts, without=("text_encoder", "vae_encoder"), **others):
    """Returns a modular pipeline of a classic one's parts."""
    blocks = blocks()
    for name in without:
        blocks.sub_blocks.pop(name)
    pipe = blocks.init_pipeline()
    known = {spec.name for spec in pipe.blocks.expected_components}
    pipe.update_components(**{name: part for name, part in parts.components.items() if name in known}, **others)
    return pipe


def with_vae(name):
    """Returns a tiny classic pipeline that decodes."""
    pipe = built(name).pipe
    if pipe.vae is None:
        torch.manual_seed(0)
        vae = diffusers.AutoencoderKL(
            block_out_channels=(4,) * 4, down_block_types=("DownEncoderBlock2D",) * 4, norm_num_groups=2,
            up_block_types=("UpDecoderBlock2D",) * 4, mid_block_add_attention=False, shift_factor=0.0,
        )  # fmt: skip
        pipe = type(pipe)(**{**pipe.components, "vae": vae.eval()})
    return pipe


def z_image(guider=None, **options):
    made = {"guider": guider} if guider else {}
    return modular(diffusers.ZImageAutoBlocks, with_vae("Z-Image"), **options, **made)


def z_prompts(count=3):
    return [
        {"prompt_embeds": [noise(10 * k, 5, 16)], "negative_prompt_embeds": [noise(10 * k + 1, 5, 16)]}
        for k in range(count)
    ]


def calibrated(pipe, prompts, **options):
    return adaptcache.calibrate(
        pipe, prompts[:2], STEPS, budget=0.5, eval_prompts=prompts[2:], progress=False, **options
    )


def evidence(schedule):
    return schedule.evidence.psnr["mean"]


@pytest.mark.parametrize("name", ["Flux", "Z-Image"])
def test_a_modular_pipeline_measures_what_the_classic_one_does(name):
    setup = built(name)
    size = {name: setup.call[name] for name in ("height", "width")}
    if name == "Flux":
        classic, prompts = setup.pipe, list(setup.prompts)
        blocks, guided, plain = modular(diffusers.FluxAutoBlocks, setup.pipe), {"guidance_scale": 3.5}, {}
    else:
        classic, prompts = with_vae(name), z_prompts()
        blocks, guided, plain = z_image(guiders.ClassifierFreeGuidance(4.0)), {}, {"guidance_scale": 3.0}
    ours, theirs = (
        calibrated(blocks, prompts, **size, **guided),
        calibrated(classic, prompts, **size, **guided, **plain),
    )
    plans = [one.rules[0].policy.steps(one.grid.times) for one in (ours, theirs)]
    assert plans[0] == plans[1] and ours.grid == theirs.grid
    assert abs(evidence(ours) - evidence(theirs)) < 0.1
    for pipe, schedule in ((blocks, theirs), (classic, ours)):  # either runs by what was measured on the other
        with adaptcache.attach(pipe, schedule) as handle:
            more = {"output": "latents"} if pipe is blocks else {"output_type": "latent", **plain}
            pipe(**prompts[2], **size, **guided, **more, num_inference_steps=STEPS)
            assert handle.report().evidence == "calibrated"


@pytest.mark.parametrize("name", GUIDERS)
def test_with_every_guider_half_of_the_calls_are_made_and_the_pipeline_stays_as_it_was(name):
    if name == "frequency-decoupled":  # which wants outputs with height and width
        pytest.importorskip("kornia")
        setup, size = built("ErnieImageModularPipeline"), {"height": 256, "width": 256}
        pipe = setup.pipe
        pipe.update_components(guider=GUIDERS[name]())
    else:
        setup, size = built("Qwen-Image"), {"height": 64, "width": 64}
        without = ("text_encoder", "vae_encoder", "controlnet_vae_encoder", "decode")
        pipe = modular(diffusers.QwenImageAutoBlocks, setup.pipe, without, guider=GUIDERS[name]())
    bad = {key: value for key, value in setup.call.items() if key.startswith("negative")}
    prompts = [row | bad for row in setup.prompts]

    def run():
        generator = torch.Generator().manual_seed(0)
        return pipe(**prompts[2], **size, num_inference_steps=STEPS, generator=generator, output="latents")

    with counted(pipe) as all_calls:
        full = run()
    schedule = adaptcache.calibrate(pipe, prompts[:2], STEPS, budget=0.5, **size, progress=False)
    with adaptcache.attach(pipe, schedule) as handle, counted(pipe) as calls:
        made = run()
    report = handle.report()
    assert len(report.computed) == STEPS // 2 and report.evidence == "calibrated" and report.made == len(calls)
    assert len(calls) < len(all_calls) and float((made - full).square().mean() / full.var()) < 0.05
    assert ("remembers earlier steps" in str(report)) == name.startswith("apg")
    assert torch.equal(run(), full)


def test_another_guider_or_another_scale_is_another_guidance():
    pipe, prompts = (
        z_image(guiders.ClassifierFreeGuidance(3.0), without=ENDS),
        z_prompts(),
    )
    schedule = adaptcache.calibrate(pipe, prompts[:2], STEPS, budget=0.5, height=64, width=64, progress=False)
    with adaptcache.attach(pipe, schedule) as handle:
        pipe.guider.guidance_scale = 4.0
        with pytest.warns(UserWarning, match="another guidance: guider.scale 3.0 and now 4.0"):
            pipe(**prompts[2], height=64, width=64, num_inference_steps=STEPS, output="latents")
        assert handle.report().evidence == "extrapolated"
        pipe.guider.guidance_scale = 30.0
        with pytest.raises(ScheduleError, match="allow it"):
            pipe(**prompts[2], height=64, width=64, num_inference_steps=STEPS, output="latents")
    pipe.update_components(guider=guiders.TangentialClassifierFreeGuidance(3.0))
    with pytest.warns(UserWarning, match="guider.class ClassifierFreeGuidance and now Tangential"):
        adaptcache.attach(pipe, schedule).close()


def test_what_blocks_do_not_take_is_refused_and_a_state_is_read_like_arguments():
    pipe, prompts = z_image(without=ENDS), z_prompts()
    with pytest.raises(TypeError, match=r"takes no hight; it takes .*height"):
        adaptcache.calibrate(pipe, prompts, STEPS, budget=0.5, pipe_kwargs={"hight": 64})
    with pytest.raises(AttachError, match="decode nothing: add a block that decodes"):
        calibrated(pipe, prompts, height=64, width=64)
    state = diffusers.modular_pipelines.PipelineState()
    for key, value in {**prompts[2], "height": 32, "width": 32}.items():
        state.set(key, value)
    given = named_inputs(pipe, {"state": state, "num_inference_steps": STEPS, "output": "latents"})
    assert given.keys() == {*prompts[2], "height", "width", "num_inference_steps"} and given["height"] == 32


def test_diffusers_caches_are_not_compared_where_modular_pipelines_do_not_clear_them():
    setup = built("Flux")
    for pipe, obstacle in ((setup.pipe, None), (modular(diffusers.FluxAutoBlocks, setup.pipe), "does not clear")):
        case = SimpleNamespace(pipe=pipe, denoisers=[setup.pipe.transformer])
        found = FirstBlock().find_obstacle(case)
        assert found is None if obstacle is None else obstacle in found


def test_only_held_out_runs_are_decoded():
    pipe, prompts, decoded = z_image(), z_prompts(), []
    own = pipe.vae.decode
    pipe.vae.decode = lambda *args, **kwargs: decoded.append(1) or own(*args, **kwargs)
    adaptcache.calibrate(pipe, prompts[:2], STEPS, budget=0.5, height=64, width=64, progress=False)
    assert not decoded
    made = adaptcache.evaluate(pipe, [], prompts[:1], STEPS, height=64, width=64, progress=False)
    assert len(decoded) == 2 and made[0].psnr["mean"] == 100
