"""What cannot be supported says so, and changes nothing."""

from dataclasses import replace

import diffusers
import pytest
import torch

import adaptcache
from adaptcache.engines.diffusers.gate import Gate
from adaptcache.errors import AttachError
from adaptcache.profiling.reference import Recorder
from tests.pipelines.setup import Setup, noise, prompts
from tests.pipelines.table import built, counted, generated, grid_of, planned, same
from tests.pipelines.video import unipc, wan_transformer


def frame_by_frame():
    """Returns a pipeline that steps a copy of its scheduler for each frame, and never its own."""
    size = {
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "in_channels": 4,
        "out_channels": 4,
        "text_dim": 16,
    }
    transformer = diffusers.SkyReelsV2Transformer3DModel(
        **size, freq_dim=16, ffn_dim=32, num_layers=1, rope_max_seq_len=32
    )
    vae = diffusers.AutoencoderKLWan(base_dim=3, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    pipe = diffusers.SkyReelsV2DiffusionForcingPipeline(None, None, transformer, vae, unipc())
    pipe.set_progress_bar_config(disable=True)
    call = {"prompt": None, "height": 16, "width": 16, "num_frames": 9, "base_num_frames": 9}
    call["negative_prompt_embeds"] = noise(9, 1, 5, 16)
    return Setup(pipe, call, prompts(prompt_embeds=(5, 16)), steps=3)


@pytest.mark.parametrize(
    "pipe",
    [
        diffusers.LTXLatentUpsamplePipeline(vae=None, latent_upsampler=None),
        diffusers.WuerstchenDecoderPipeline(None, None, None, diffusers.DDPMWuerstchenScheduler(), None),
    ],
    ids=["no scheduler", "no denoiser by a known name"],
)
def test_a_pipeline_without_scheduler_or_denoiser_is_refused_at_once(pipe):
    scheduler, kind = getattr(pipe, "scheduler", None), type(pipe)
    with pytest.raises(AttachError, match=r"has no (scheduler|denoiser)"):
        Gate(pipe, Recorder()).open()
    assert type(pipe) is kind and (scheduler is None or type(pipe.scheduler) is type(scheduler))


def test_a_scheduler_whose_step_takes_no_model_output_is_refused_at_once():
    class Odd(diffusers.DDIMScheduler):
        def step(self, output, t, x):
            raise NotImplementedError

    setup = built("Stable Diffusion 1.5")
    setup.pipe.scheduler = Odd()
    with pytest.raises(AttachError, match="takes no model_output, timestep, sample"):
        Gate(setup.pipe, Recorder()).open()
    assert type(setup.pipe.scheduler) is Odd and type(setup.pipe) is diffusers.StableDiffusionPipeline


def test_a_pipeline_that_steps_a_copy_of_its_scheduler_for_each_frame_is_followed():
    setup = replace(frame_by_frame(), steps=6)
    plain, classes = generated(setup), (type(setup.pipe), type(setup.pipe.scheduler))
    everything, planned_ones = planned(setup, range(6)), planned(setup, [0, 1, 3])
    with adaptcache.attach(setup.pipe, everything):
        assert same(generated(setup), plain)
    with adaptcache.attach(setup.pipe, planned_ones) as handle:
        cached = generated(setup)[0]
        assert cached.isfinite().all() and not torch.equal(cached, plain[0])
        assert handle.report().computed == [0, 1, 3]
    assert (type(setup.pipe), type(setup.pipe.scheduler)) == classes and same(generated(setup), plain)


def test_a_pipeline_that_does_not_use_its_scheduler_is_not_run_in_silence():
    class Own(diffusers.StableDiffusionPipeline):
        def __call__(self, **arguments):
            return self.unet(noise(1, 1, 4, 8, 8), 1, noise(2, 1, 5, 16))

    setup = built("Stable Diffusion 1.5")
    schedule = planned(setup, [0, 2])
    setup.pipe.__class__ = Own
    with (
        adaptcache.attach(setup.pipe, schedule),
        pytest.raises(AttachError, match="did not use its scheduler"),
    ):
        setup.pipe()
    assert type(setup.pipe) is Own


def test_a_run_that_stops_within_its_grid_is_cached_and_calibrated_on():
    setup = built("SDXL")
    schedule = planned(setup, [0, 2])
    short = replace(setup, call={**setup.call, "denoising_end": 0.6})
    with adaptcache.attach(setup.pipe, schedule) as handle:
        generated(short)
        assert handle.report().computed == [0, 2] and handle.report().skipped == 1
        assert handle._gate.loop is None
    fitted = adaptcache.calibrate(
        setup.pipe, setup.prompts[:2], setup.steps, budget=0.5, pipe_kwargs=short.call, effort=0, progress=False
    )
    taken = len(grid_of(short))
    assert taken == len(fitted.grid.times) == setup.steps - fitted.left < setup.steps
    with adaptcache.attach(setup.pipe, fitted, strict=True) as handle, counted(setup.pipe) as calls:
        generated(short)
        assert handle.report().evidence == "calibrated" and len(calls) == round(taken / 2)
    with adaptcache.attach(setup.pipe, fitted) as handle:
        generated(setup)  # goes on to the end: what nothing was fitted to is computed
    report = handle.report()
    assert report.computed[-fitted.left :] == list(range(taken, setup.steps)) and report.evidence == "extrapolated"


def test_both_experts_are_called_and_skipped():
    setup = built("Wan 2.2")
    calls = []
    for number, expert in enumerate((setup.pipe.transformer, setup.pipe.transformer_2)):
        expert.register_forward_hook(lambda *_, number=number: calls.append(number))
    with adaptcache.attach(setup.pipe, planned(setup, range(8))):
        calls.clear()
        generated(setup)
        full = list(calls)
    assert full == sorted(full) and 4 <= sum(full) <= 12
    with adaptcache.attach(setup.pipe, planned(setup, [0, 1, 7])):
        calls.clear()
        generated(setup)
    assert calls == [0, 0, 0, 0, 1, 1]
    assert type(setup.pipe.transformer_2) is type(wan_transformer())
