"""The scheduler steps several times at one timestep: a panorama is denoised in overlapping views."""

import diffusers
import pytest
import torch

import adaptcache
from adaptcache.errors import AttachError, ScheduleError
from tests.pipelines.setup import noise
from tests.pipelines.table import counted
from tests.pipelines.unet import sd_parts

STEPS, VIEWS = 6, 3
ROWS = [{"prompt_embeds": noise(k, 1, 5, 16)} for k in range(2)]
SHARED = {"negative_prompt_embeds": noise(9, 1, 5, 16), "height": 512}
WIDE = SHARED | {"width": 640}  # three views of 64 latents, 8 apart


def small_vae():
    """Makes images 8 times as large as latents, as the panorama pipeline takes for granted."""
    return diffusers.AutoencoderKL(
        block_out_channels=(4,) * 4, down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=4, norm_num_groups=2, layers_per_block=1,
        mid_block_add_attention=False,
    )  # fmt: skip


def pipelines():
    """Returns a panorama pipeline, and a plain one of the same parts."""
    torch.manual_seed(0)
    wide = diffusers.StableDiffusionPanoramaPipeline(**sd_parts() | {"vae": small_vae()})
    plain = diffusers.StableDiffusionPipeline(**wide.components, requires_safety_checker=False)
    for pipe in (wide, plain):
        pipe.set_progress_bar_config(disable=True)
    return wide, plain


def generated(pipe):
    return pipe(
        **ROWS[0], **WIDE, num_inference_steps=STEPS, output_type="latent",
        generator=torch.Generator().manual_seed(5),
    ).images  # fmt: skip


def relative_error(a, b):
    return float((a - b).square().mean() / b.var())


@pytest.mark.parametrize("calibrated_on", ["one view", "the panorama"])
def test_overlapping_views_give_the_right_image_and_a_true_report_or_are_refused(calibrated_on):
    wide, plain = pipelines()
    full = generated(wide)
    own = calibrated_on == "the panorama"
    call = WIDE if own else SHARED | {"width": 512}
    try:
        schedule = adaptcache.calibrate(
            wide if own else plain, ROWS, num_inference_steps=STEPS, budget=0.5, pipe_kwargs=call
        )
        with adaptcache.attach(wide, schedule) as handle, counted(wide) as calls:
            image = generated(wide)
    except (AttachError, ScheduleError):
        return  # with a sentence of its own
    report = handle.report()
    assert relative_error(image, full) < 0.1
    assert report.made == len(calls) and report.made + report.skipped == STEPS * VIEWS
