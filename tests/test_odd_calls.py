"""Loops that do more at a step than call a denoiser with the latents and step a scheduler with what it says."""

import diffusers
import numpy as np
import pytest
import torch

import adaptcache
from adaptcache.engines.diffusers.calls import NO_LATENT, call_pipeline, takes_latent
from adaptcache.engines.diffusers.grid import times_of
from adaptcache.errors import AttachError
from adaptcache.runs import PipelineCall, PromptSet
from tests.pipelines.table import built, counted

STEPS = 8
UNET = {
    "sample_size": 4, "block_out_channels": (8,), "down_block_types": ("DownBlock2D",), "norm_num_groups": 1,
    "up_block_types": ("UpBlock2D",), "layers_per_block": 1, "add_attention": False,
}  # fmt: skip


class Odd(diffusers.DiffusionPipeline):
    """Denoises by a U-Net, with a loop of its own."""

    def __init__(self, unet, scheduler):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    @torch.no_grad()
    def __call__(self, prompt=0.0, num_inference_steps=STEPS, generator=None, output_type="latent", return_dict=True):
        x = torch.randn(1, 3, 4, 4, generator=generator) + prompt
        self.scheduler.set_timesteps(num_inference_steps)
        x = x * self.scheduler.init_noise_sigma
        for number, t in enumerate(self.scheduler.timesteps):
            x = self.step(number, t, x, generator)
        return (x.permute(0, 2, 3, 1).sigmoid().numpy() if output_type == "np" else x,)


class Longer(Odd):
    """Its first call has a picture beside the latents, which later calls know (FLUX.2 klein with cached keys)."""

    def step(self, number, t, x, generator):
        given = torch.cat([x, torch.ones_like(x)], dim=3) if number == 0 else x
        u = self.unet(given, t).sample[..., :4]
        return self.scheduler.step(u, t, x).prev_sample


class Learned(Odd):
    """Its denoiser gives a variance too (DeepFloyd IF)."""

    def step(self, number, t, x, generator):
        return self.scheduler.step(self.unet(x, t).sample, t, x, generator=generator).prev_sample


class Twice(Odd):
    """Steps once to see where the denoiser points, changes that, and steps again (Cosmos 1)."""

    def step(self, number, t, x, generator):
        u = self.unet(self.scheduler.scale_model_input(x, t), t).sample
        data = self.scheduler.step(u, t, x).pred_original_sample.clamp(-2, 2)
        self.scheduler._step_index -= 1
        return self.scheduler.step(data, t, x, pred_original_sample=data).prev_sample


def pipe_of(kind):
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(in_channels=3, out_channels=6 if kind is Learned else 3, **UNET).eval()
    if kind is Twice:
        scheduler = diffusers.EDMEulerScheduler()
    else:
        scheduler = diffusers.DDPMScheduler(variance_type="learned_range" if kind is Learned else "fixed_small")
        scheduler = scheduler if kind is Learned else diffusers.DDIMScheduler()
    pipe = kind(unet, scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run(pipe, prompt=0.5):
    return pipe(prompt=prompt, generator=torch.Generator().manual_seed(5))[0]


@pytest.mark.parametrize("kind", [Longer, Learned, Twice])
def test_it_is_calibrated_validated_and_followed(kind):
    pipe = pipe_of(kind)
    full, prompts = run(pipe), [{"prompt": value} for value in (0.0, 1.0, 0.5)]
    schedule = adaptcache.calibrate(pipe, prompts[:2], STEPS, budget=0.5, eval_prompts=prompts[2:], progress=False)
    with adaptcache.attach(pipe, schedule) as handle, counted(pipe) as calls:
        made = run(pipe)
    report = handle.report()
    assert report.evidence == "calibrated" and report.made == len(calls) < STEPS
    assert float((made - full).square().mean() / full.var()) < 0.1
    assert torch.equal(run(pipe), full)


def test_a_call_that_had_to_be_made_is_used():
    pipe, given = pipe_of(Longer), []
    schedule = adaptcache.calibrate(pipe, [{"prompt": 0.0}], STEPS, budget=2 / STEPS, progress=False)
    real = pipe.unet.forward
    pipe.unet.forward = lambda x, t: given.append(x) or real(x, t)
    with adaptcache.attach(pipe, schedule) as handle:
        run(pipe)
    assert handle.report().computed[:2] == [0, 1]
    t = pipe.scheduler.timesteps
    first = pipe.scheduler.step(real(given[0], t[0]).sample[..., :4], t[0], given[0][..., :4]).prev_sample
    assert torch.allclose(first, given[1], atol=1e-6) and len(given) == len(handle.report().computed)


def test_a_pipeline_of_pipelines_names_its_parts():
    pipe = pipe_of(Learned)
    pipe.inner = pipe_of(Twice)
    with pytest.raises(AttachError, match=r"runs other pipelines, each with a loop of its own: use pipe\.inner"):
        adaptcache.calibrate(pipe, [{"prompt": 0.0}], STEPS, budget=0.5)


def test_a_grid_that_names_its_end_too_has_a_step_less():
    scheduler = diffusers.SCMScheduler()
    scheduler.set_timesteps(4, intermediate_timesteps=None)
    assert len(scheduler.timesteps) == 5 and len(times_of(scheduler)) == 4
    for kind in (diffusers.PNDMScheduler, diffusers.HeunDiscreteScheduler, diffusers.DDIMScheduler):
        other = kind()
        other.set_timesteps(4)
        assert len(times_of(other)) == len(other.timesteps)


def test_a_call_that_turns_out_to_give_no_latents_is_made_again_from_the_same_noise():
    setup = built("QwenImageLayeredPipeline")
    call, prompts = PipelineCall(2, setup.call), PromptSet.of(setup.prompts[:1])
    NO_LATENT.discard(type(setup.pipe))
    first, second = (call_pipeline(setup.pipe, call, prompts)[0] for _ in range(2))
    assert (np.asarray(first[0]) == np.asarray(second[0])).all()


def test_whether_latents_can_be_had_is_read_from_the_call():
    assert takes_latent(built("Flux").pipe)
    assert not takes_latent(object.__new__(diffusers.KandinskyV22ControlnetPipeline))
