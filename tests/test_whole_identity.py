"""What a schedule was measured with is the whole pipeline, at this run: decoder, text encoder, patches, precision."""

import copy
import json
import warnings

import diffusers
import pytest
import torch
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

import adaptcache
from adaptcache.engines.diffusers.identity import components_of, identity_of
from adaptcache.errors import ScheduleError
from adaptcache.profiling.measure import content_key
from adaptcache.schedule.schedule import Schedule
from tests.calls import Call
from tests.pipelines.setup import Setup, noise
from tests.pipelines.table import built, generated
from tests.pipelines.unet import sd_call, sd_parts


def text_encoder(seed=0):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return CLIPTextModel(CLIPTextConfig(vocab_size=20, max_position_embeddings=8, **sizes)).eval()


@pytest.fixture
def setup():
    torch.manual_seed(0)
    pipe = diffusers.StableDiffusionPipeline(**sd_parts() | {"text_encoder": text_encoder()})
    pipe.set_progress_bar_config(disable=True)
    return Setup(pipe, sd_call(), [{"prompt_embeds": noise(k, 1, 5, 16)} for k in range(2)])


@pytest.fixture
def schedule(setup):
    return adaptcache.calibrate(setup.pipe, setup.prompts, setup.steps, budget=0.5, pipe_kwargs=setup.call)


class Merged(nn.Linear):
    """A layer as libraries put it in place that merge tokens: other outputs by the same weights."""

    def forward(self, x):
        return super().forward(x.mean(1, keepdim=True).expand_as(x))


def merges_tokens(pipe):
    for layer in pipe.unet.modules():
        if isinstance(layer, nn.Linear):
            layer.__class__ = Merged
            return


@torch.no_grad()
def scales(part):
    next(part.parameters()).mul_(1.5)


CHANGES = {
    "weights of the decoder": lambda pipe: scales(pipe.vae.decoder),
    "another decoder": lambda pipe: setattr(pipe, "vae", sd_parts()["vae"]),
    "tiles of the decoder": lambda pipe: pipe.vae.enable_tiling(),
    "scaling factor": lambda pipe: pipe.vae.register_to_config(scaling_factor=0.5),
    "weights of the text encoder": lambda pipe: scales(pipe.text_encoder),
    "another text encoder": lambda pipe: setattr(pipe, "text_encoder", text_encoder(1)),
    "merged tokens": merges_tokens,
    "FreeU": lambda pipe: pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4),
    "the scheduler": lambda pipe: pipe.scheduler.register_to_config(clip_sample=True),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_whatever_changes_is_seen_by_cache_schedule_and_attached_runs_alike(setup, schedule, change):
    pipe, key = setup.pipe, content_key(Call(setup.steps).of(setup.pipe))
    with adaptcache.attach(pipe, schedule) as handle, adaptcache.attach(copied(pipe), schedule, strict=True) as strict:
        generated(setup)
        assert handle.report().evidence == "calibrated"
        generated(setup, strict._pipe)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            change(pipe)
            generated(setup)
            assert len(caught) == 1
            generated(setup)
            assert len(caught) == 1  # said once
        assert handle.report().evidence == "extrapolated"
        change(strict._pipe)
        with pytest.raises(ScheduleError, match="was fitted"):
            generated(setup, strict._pipe)
    assert content_key(Call(setup.steps).of(pipe)) != key
    with pytest.raises(ScheduleError, match="was fitted"):
        adaptcache.attach(pipe, schedule, strict=True)


def copied(pipe):
    made = type(pipe)(
        **{name: copy.deepcopy(part) for name, part in pipe.components.items()}, requires_safety_checker=False
    )
    made.set_progress_bar_config(disable=True)
    return made


def test_what_a_schedule_does_not_know_is_to_stay_as_it_was_when_attached(setup, schedule):
    old = schedule.model_copy(update={"made": {k: v for k, v in schedule.made.items() if k != "components"}})
    scales(setup.pipe.vae.decoder)
    with adaptcache.attach(setup.pipe, old) as handle:
        generated(setup)
        assert handle.report().evidence == "calibrated"  # as version 0.1 said, which did not look at decoders
        scales(setup.pipe.vae.decoder)
        with pytest.warns(UserWarning, match=r"another vae \(weights\)"):
            generated(setup)
        assert handle.report().evidence == "extrapolated"


def test_a_pipeline_that_was_saved_and_loaded_is_the_same(setup, schedule, tmp_path):
    setup.pipe.save_pretrained(tmp_path / "pipe")
    loaded = diffusers.StableDiffusionPipeline.from_pretrained(
        tmp_path / "pipe", requires_safety_checker=False,
        **dict.fromkeys(("safety_checker", "tokenizer", "feature_extractor", "image_encoder")),
    )  # fmt: skip
    loaded.set_progress_bar_config(disable=True)
    again = Schedule.load(schedule.save(tmp_path / "mine.json"))
    assert again.made["components"] == components_of(loaded) == components_of(setup.pipe)
    with adaptcache.attach(loaded, again, strict=True) as handle:
        generated(setup, loaded)
        assert handle.report().evidence == "calibrated"


@pytest.mark.parametrize("left_out", ["text_encoder", "image_encoder"])
def test_a_part_that_is_not_there_changes_nothing(setup, schedule, left_out):
    setattr(setup.pipe, left_out, None)
    with adaptcache.attach(setup.pipe, schedule, strict=True) as handle:
        generated(setup)
        assert handle.report().evidence == "calibrated"


def test_runs_offloading_and_hooks_that_look_change_nothing(setup, schedule):
    pipe, seen = setup.pipe, []
    pipe.unet.register_forward_hook(lambda *args: seen.append(1))
    with adaptcache.attach(pipe, schedule, strict=True) as handle:
        generated(setup)
        for part in (pipe.unet, pipe.vae, pipe.text_encoder):
            for weight in part.parameters():
                weight.data = weight.data.clone()  # elsewhere, as after a way through another device
        generated(setup)
        assert handle.report().evidence == "calibrated" and seen


def test_another_precision_was_not_measured(setup, schedule):
    setup.pipe.to(torch.bfloat16)
    with pytest.warns(UserWarning, match="measured in float32, this is bfloat16"):
        handle = adaptcache.attach(setup.pipe, schedule)
    with handle, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = {name: value.bfloat16() for name, value in setup.prompts[0].items()}
        setup.pipe(**rows, height=16, width=16, negative_prompt_embeds=rows["prompt_embeds"], output_type="latent",
                   num_inference_steps=setup.steps)  # fmt: skip
        assert handle.report().evidence == "extrapolated"


def test_the_identity_of_a_pipeline_has_no_addresses(setup):
    one, other = (json.dumps(identity_of(pipe), default=repr) for pipe in (setup.pipe, copied(setup.pipe)))
    assert one == other and "0x" not in one


# Guidance


def guided(setup, **call):
    return adaptcache.calibrate(
        setup.pipe, setup.prompts[:2], setup.steps, budget=0.5, pipe_kwargs={**setup.call, **call}
    )


def test_guidance_that_is_an_input_of_the_denoiser_is_refused_far_beyond_the_calibrated_one():
    setup = built("Flux")
    schedule = guided(setup)
    with adaptcache.attach(setup.pipe, schedule) as handle:
        with pytest.warns(UserWarning, match=r"guidance_scale 3.5 and now 7.0"):
            generated(setup, guidance_scale=7.0)
        assert handle.report().evidence == "extrapolated"
        with pytest.raises(ScheduleError, match=r"guidance_scale 3.5 and now 7.5.*allow=\('guidance',\).*up to 7"):
            generated(setup, guidance_scale=7.5)
    with adaptcache.attach(setup.pipe, schedule, allow=["guidance"]) as handle:
        generated(setup, guidance_scale=7.5)
        assert handle.report().evidence == "extrapolated" and handle.report().skipped


def test_guidance_that_the_denoiser_has_no_input_for_changes_nothing():
    setup = built("Flux")
    setup.pipe.transformer = diffusers.FluxTransformer2DModel.from_config(
        {**setup.pipe.transformer.config, "guidance_embeds": False}
    )
    schedule = guided(setup)
    with adaptcache.attach(setup.pipe, schedule, strict=True) as handle:
        generated(setup, guidance_scale=9.0)
        assert handle.report().evidence == "calibrated"


NEGATIVE = {"negative_prompt_embeds": noise(9, 1, 5, 16), "negative_pooled_prompt_embeds": noise(8, 1, 16)}


@pytest.mark.parametrize("calibrated", ["on", "off"])
def test_guidance_that_is_switched_by_a_negative_prompt_is_seen(calibrated):
    setup = built("Flux")
    on, off = {"true_cfg_scale": 2.0, **NEGATIVE}, {"true_cfg_scale": 2.0}
    before, now = (on, off) if calibrated == "on" else (off, on)
    schedule = guided(setup, **before)
    assert schedule.made["branches"] == [2.0 if calibrated == "on" else 1.0] * setup.steps
    with adaptcache.attach(setup.pipe, schedule) as handle:
        generated(setup, **before)
        assert handle.report().evidence == "calibrated"
        generated(setup, **now)
        assert handle.report().evidence == "extrapolated"
    with (
        adaptcache.attach(setup.pipe, schedule, strict=True),
        pytest.raises(ScheduleError, match="branches at step 0"),
    ):
        generated(setup, **now)


@pytest.mark.parametrize("name", ["Flux, two branches", "Stable Diffusion 1.5", "InstructPix2Pix", "PixArt-Sigma"])
def test_branches_are_the_same_for_several_images_of_a_prompt(name):
    setup = built(name)
    schedule = guided(setup)
    assert schedule.made["branches"] == [3.0 if name == "InstructPix2Pix" else 2.0] * setup.steps
    with adaptcache.attach(setup.pipe, schedule, strict=True) as handle:
        generated(setup, num_images_per_prompt=3)
        assert handle.report().evidence == "calibrated"


def test_branches_are_kept_with_the_profile(tmp_path):
    setup = built("Stable Diffusion 1.5")
    first, again = (
        adaptcache.calibrate(setup.pipe, setup.prompts[:2], 6, budget=0.5, pipe_kwargs=setup.call, cache_dir=tmp_path)
        for _ in range(2)
    )
    assert first == again and again.made["branches"] == [2.0] * 6
