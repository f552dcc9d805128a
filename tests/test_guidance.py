"""The site `guidance`: the call that only serves guidance, alone or as the half of a batch."""

import functools

import flux
import pytest
import torch
from diffusers import DDPMWuerstchenScheduler, FasterCacheConfig, StableCascadePriorPipeline
from diffusers.models import StableCascadeUNet
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

import adaptcache
from adaptcache.engines.diffusers.components import denoisers_of
from adaptcache.errors import AttachError
from adaptcache.policies.mask import Mask
from adaptcache.schedule.rule import Rule
from adaptcache.schedule.schedule import Schedule
from tests.pipelines.table import built, generated, grid_of, same

SEQUENTIAL = ("Flux, two branches", "Qwen-Image", "Wan 2.1", "Wan 2.2", "Chroma", "Lumina 2", "CogView 4")
BATCHED = ("CogVideoX", "Stable Diffusion 1.5", "SDXL", "Stable Diffusion ControlNet")
FAST = ("Flux, two branches", "CogVideoX")


def slowly(*names):
    return [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in names]


def schedule(mask, **forecast):
    policy = Mask(compute_steps=tuple(map(bool, mask)))
    forecast = {"type": "extrapolate"} | forecast
    return Schedule(name="guidance", rules=(Rule(site="guidance", policy=policy, forecast=forecast),))


def close(a, b):
    """Whether tensors are equal but for rounding, which a batch of another size changes."""
    return all((x - y).abs().max() < 2e-6 * max(y.abs().max(), 10) for x, y in zip(a, b, strict=True))


def head(output):
    """Returns the tensor of a denoiser's output, and how to put another one in its place."""
    if isinstance(output, tuple):
        return output[0], lambda new: (new, *output[1:])
    return output.sample, lambda new: type(output)(sample=new)


class Written:
    """Reuse of what guidance adds, written out at the denoiser's forward."""

    def __init__(self, denoisers, mask, batched):
        self.mask, self.batched, self.step, self.branch = mask, batched, -1, 1
        self.denoisers = denoisers
        for denoiser in denoisers:
            denoiser.forward = self.forward(denoiser.forward, {})

    def forward(self, own, kept):
        def forward(*args, **kwargs):
            self.branch = 0 if self.batched else 1 - self.branch
            self.step += self.branch == 0
            output = own(*args, **kwargs)
            tensor, wrap = head(output)
            if self.batched:
                without, given = tensor.chunk(2)
                if self.mask[self.step] or not kept:
                    kept["added"] = without - given
                return wrap(torch.cat([given + kept["added"], given]))
            if self.branch == 0:
                kept["given"] = tensor
            elif self.mask[self.step] or "added" not in kept:
                kept["added"] = tensor - kept["given"]
            else:
                return wrap(kept["given"] + kept["added"])
            return output

        return forward

    def close(self):
        for denoiser in self.denoisers:
            del denoiser.forward


@pytest.mark.parametrize("name", slowly(*SEQUENTIAL, *BATCHED))
def test_the_call_for_guidance_is_skipped_and_reuse_is_the_loop_written_out(name):
    setup = built(name)
    mask = [i % 3 == 0 for i in range(len(grid_of(setup)))]
    plain = generated(setup)
    with adaptcache.attach(setup.pipe, schedule([1] * len(mask))) as handle:
        assert same(generated(setup), plain)
        branches = len(handle.report().calls[0])
    samples = []
    for denoiser in denoisers_of(setup.pipe):
        denoiser.register_forward_pre_hook(
            lambda _, args, kwargs: samples.append(
                len(next(v for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor)))
            ),
            with_kwargs=True,
        )
    with adaptcache.attach(setup.pipe, schedule(mask)) as handle:
        made = generated(setup)
        report = handle.report()
        assert same(generated(setup), made)
    batched = branches == 1
    assert batched == (name in BATCHED) and not same(made, plain)
    if batched:
        assert samples[: len(mask)] == [2 if flag else 1 for flag in mask]
        assert report.sites["guidance"] == tuple(i for i, flag in enumerate(mask) if flag)
    elif name != "Wan 2.2":  # its second expert has to begin with both calls
        assert [calls == (True, True) for calls in report.calls] == mask
        assert all(calls[0] for calls in report.calls)
    loop = Written(denoisers_of(setup.pipe), mask, batched)
    peer = generated(setup)
    loop.close()
    assert close(peer, made)
    assert same(generated(setup), plain)


@pytest.mark.parametrize("name", FAST)
def test_without_the_interval_the_output_is_that_with_the_prompt_alone(name):
    setup = built(name)
    times = grid_of(setup)
    skipped = [i for i, t in enumerate(times) if i and (t > 0.8 or t < 0.5)]
    with adaptcache.attach(setup.pipe, Schedule.of("guidance-interval", window=(0.8, 0.5))) as handle:
        made = generated(setup)
        assert handle.report().sites["guidance"] == tuple(i for i in range(len(times)) if i not in skipped)

    loop = Written(denoisers_of(setup.pipe), [True] * len(times), batched=name == "CogVideoX")
    own = setup.pipe.scheduler.step
    seen = []

    @functools.wraps(own)  # pipelines ask for the names of its arguments
    def step(u, *args, **kwargs):  # the output with the prompt, where guidance is off
        seen.append(u)
        return own(given[0] if len(seen) - 1 in skipped else u, *args, **kwargs)

    given = [None]
    for denoiser in denoisers_of(setup.pipe):
        whole = denoiser.forward

        def forward(*args, whole=whole, **kwargs):
            output = whole(*args, **kwargs)
            tensor = head(output)[0]
            given[0] = tensor.chunk(2)[1] if loop.batched else tensor if loop.branch == 0 else given[0]
            return output

        denoiser.forward = forward
    setup.pipe.scheduler.step = step
    peer = generated(setup)
    assert close(peer, made)


# PixArt guides in a batch of two halves, but its pipeline does not say whether it does.
@pytest.mark.parametrize("name", ["Flux", "DiT", "InstructPix2Pix", "PixArt-Sigma"])
def test_runs_without_a_call_for_guidance_are_refused_and_leave_nothing(name):
    setup = built(name)
    plain = generated(setup)
    with (
        adaptcache.attach(setup.pipe, schedule([1, 0])),
        pytest.raises(AttachError, match="turn guidance on"),
    ):
        generated(setup)
    assert same(generated(setup), plain)


@pytest.mark.parametrize("name", ["guidance-interval", "fastercache"])
def test_a_denoiser_that_takes_a_list_of_samples_is_refused_by_name(name):
    setup = built("Z-Image")
    plain = generated(setup)
    with (
        adaptcache.attach(setup.pipe, Schedule.of(name)),
        pytest.raises(AttachError, match="takes a list of samples, of which the site 'guidance' cannot leave out"),
    ):
        generated(setup)
    assert same(generated(setup), plain)


def test_guidance_by_another_denoiser_is_refused_by_name():
    setup = built("Ideogram4Pipeline")
    with (
        adaptcache.attach(setup.pipe, Schedule.of("guidance-interval")),
        pytest.raises(AttachError, match="one for both"),
    ):
        generated(setup)


def test_guidance_is_computed_where_outputs_have_another_shape_than_before():
    setup = built("QwenImage21Pipeline")  # returns the text's tokens at the first step only
    with adaptcache.attach(setup.pipe, schedule([1] + [0] * 9)) as handle:
        assert all(value.isfinite().all() for value in generated(setup))
        assert handle.report().sites["guidance"][:2] == (0, 1)


def test_two_prompts_with_the_same_noise_are_not_taken_for_two_halves():
    pipe = built("Flux, two branches").pipe
    row = dict(
        prompt_embeds=torch.randn(2, 5, 16), pooled_prompt_embeds=torch.randn(2, 16),
        negative_prompt_embeds=torch.randn(2, 5, 16), negative_pooled_prompt_embeds=torch.randn(2, 16),
        true_cfg_scale=3.0, height=16, width=16, num_inference_steps=4, output_type="latent",
    )  # fmt: skip

    def run():
        return pipe(**row, generator=[torch.Generator().manual_seed(0) for _ in range(2)]).images

    with adaptcache.attach(pipe, schedule([1, 0, 1, 0])) as handle:
        run()
        assert handle.report().calls == ((True, True), (True, False)) * 2


@pytest.mark.parametrize("more", [{}, {"true_cfg_scale": 1.0}])
def test_two_prompts_of_a_distilled_model_are_not_taken_for_two_halves(more):
    pipe = flux.pipeline()
    row = dict(
        prompt_embeds=torch.randn(2, 5, 16), pooled_prompt_embeds=torch.randn(2, 8), height=16, width=16,
        num_inference_steps=4, output_type="latent", **more,
    )  # fmt: skip

    def run():
        return pipe(**row, generator=[torch.Generator().manual_seed(0) for _ in range(2)]).images

    full = run()
    with adaptcache.attach(pipe, schedule([1, 0])), pytest.raises(AttachError, match="turn guidance on"):
        run()
    with adaptcache.attach(pipe, Schedule.of("fastercache", interval={"attention": 1})) as handle:
        assert torch.equal(run(), full)
        assert "attention" in handle.report().sites


def faster(pipe, **params):
    """Enables diffusers' FasterCache."""
    pipe.transformer.enable_cache(
        FasterCacheConfig(
            spatial_attention_block_identifiers=("transformer_blocks",),
            current_timestep_callback=lambda: pipe.current_timestep, **params,
        )
    )  # fmt: skip


@pytest.mark.parametrize("steps", [12, 15])
def test_fastercache_is_that_of_diffusers(steps):
    setup = built("CogVideoX")
    full = generated(setup, num_inference_steps=steps)
    with adaptcache.attach(setup.pipe, Schedule.of("fastercache")) as handle:
        made = generated(setup, num_inference_steps=steps)
        sites = handle.report().sites
        assert same(generated(setup, num_inference_steps=steps), made)
    assert len(sites["guidance"]) < steps and len(sites["attention"]) < steps
    faster(setup.pipe, tensor_format="BFCHW")
    peer = generated(setup, num_inference_steps=steps)
    setup.pipe.transformer.disable_cache()
    assert close(peer, made) and not close(full, made)


@pytest.mark.parametrize("interval", [2, 3])
def test_fastercache_of_a_distilled_model_is_that_of_diffusers(interval):
    pipe = flux.pipeline()
    full = flux.run(pipe, 12)
    with adaptcache.attach(pipe, Schedule.of("fastercache", interval={"attention": interval})) as handle:
        made = flux.run(pipe, 12)
        assert set(handle.report().sites) == {"attention"}
    faster(pipe, is_guidance_distilled=True, spatial_attention_block_skip_range=interval)
    peer = flux.run(pipe, 12)
    pipe.transformer.disable_cache()
    assert close([peer], [made]) and not close([full], [made])


def cascade():
    """A Stable Cascade prior, whose batch has the half with the prompt first."""
    torch.manual_seed(0)
    prior = StableCascadeUNet(
        conditioning_dim=32, block_out_channels=(32, 32), num_attention_heads=(2, 2), down_num_layers_per_block=(1, 1),
        up_num_layers_per_block=(1, 1), switch_level=(False,), clip_image_in_channels=768, clip_text_in_channels=8,
        clip_text_pooled_in_channels=8, dropout=(0.0, 0.0),
    ).eval()  # fmt: skip
    shape = CLIPTextConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=4
    )
    encoder = CLIPTextModelWithProjection(shape)  # is asked for its type of numbers
    pipe = StableCascadePriorPipeline(
        tokenizer=None, text_encoder=encoder, prior=prior, scheduler=DDPMWuerstchenScheduler()
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_a_pipeline_whose_halves_are_the_other_way_round_is_refused():
    pipe, text = cascade(), torch.randn(2, 1, 77, 8, generator=torch.Generator().manual_seed(0))
    call = {
        "prompt_embeds": text[0], "negative_prompt_embeds": text[1], "prompt_embeds_pooled": text[0, :, :1],
        "negative_prompt_embeds_pooled": text[1, :, :1], "height": 128, "width": 128, "guidance_scale": 4.0,
        "num_inference_steps": 4, "output_type": "np",
    }  # fmt: skip
    with adaptcache.attach(pipe, schedule([1, 0, 1, 1])), pytest.raises(AttachError, match="puts the half with the"):
        pipe(**call)
    setup = built("ACE-Step")
    with adaptcache.attach(setup.pipe, schedule([1, 0] * 3)), pytest.raises(AttachError, match="use another site"):
        generated(setup, guidance_scale=5.0)
