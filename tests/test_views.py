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


class Tiles(diffusers.StableDiffusionPipeline):
    """Denoises tiles one after the other at each time, each with a copy of the scheduler's state."""

    @torch.no_grad()
    def __call__(self, prompt_embeds=None, num_inference_steps=STEPS, generator=None, output_type="latent",
                 return_dict=True, tiles=2, more_from=99):  # fmt: skip
        x = torch.randn(max(tiles, 3), 1, 4, 8, 8, generator=generator)
        self.scheduler.set_timesteps(num_inference_steps)
        for i, t in enumerate(self.scheduler.timesteps):
            for k in range(tiles + (i >= more_from)):
                u = self.unet(x[k], t, encoder_hidden_states=prompt_embeds, return_dict=False)[0]
                x[k] = self.scheduler.step(u, t, x[k], return_dict=False)[0]
        return (x,)


def tiled():
    torch.manual_seed(0)
    parts = {**sd_parts(), "vae": small_vae()}
    pipe = Tiles(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiles_of(pipe, **more):
    return pipe(**ROWS[0], generator=torch.Generator().manual_seed(5), **more)[0]


def plan_of(steps, pipe, count=STEPS):
    from adaptcache.engines.diffusers.grid import times_of
    from adaptcache.engines.diffusers.identity import fingerprint
    from adaptcache.forecasts.extrapolate import Extrapolate
    from adaptcache.policies.plan import Plan
    from adaptcache.schedule.format import Grid
    from adaptcache.schedule.rule import Rule
    from adaptcache.schedule.schedule import Schedule

    pipe.scheduler.set_timesteps(count)
    times = times_of(pipe.scheduler)
    rule = Rule(policy=Plan.of(steps, times), forecast=Extrapolate(order=1))
    grid = Grid(scheduler=type(pipe.scheduler).__name__, times=times)
    return Schedule(name="by hand", denoiser=fingerprint(pipe), grid=grid, rules=(rule,))


@pytest.mark.parametrize("tiles", [1, 2, 3])
@pytest.mark.parametrize("steps", [4, 9])
def test_each_tile_has_the_history_it_would_have_alone(tiles, steps):
    pipe = tiled()
    schedule = plan_of([0, 1, 3], pipe, steps)
    x = torch.randn(3, 1, 4, 8, 8, generator=torch.Generator().manual_seed(5))

    def alone(k):  # the same tile, in a loop without others
        with handle.loop():
            y = x[k]
            pipe.scheduler.set_timesteps(steps)
            for t in pipe.scheduler.timesteps:
                u = pipe.unet(y, t, encoder_hidden_states=ROWS[0]["prompt_embeds"], return_dict=False)[0]
                y = pipe.scheduler.step(u, t, y, return_dict=False)[0]
        return y

    with torch.no_grad(), adaptcache.attach(pipe, schedule) as handle, counted(pipe) as calls:
        made = tiles_of(pipe, tiles=tiles, num_inference_steps=steps)
        report = handle.report()
        assert len(calls) == report.made == 3 * tiles and report.made + report.skipped == steps * tiles
        assert report.evidence == ("calibrated" if tiles == 1 else "extrapolated")
        for k in range(tiles):
            assert torch.equal(made[k], alone(k))


@pytest.mark.parametrize("more_from", [2, 3, 4])
def test_a_tile_that_comes_later_is_refused_or_right(more_from):
    pipe = tiled()
    full = tiles_of(pipe, more_from=more_from)
    with adaptcache.attach(pipe, plan_of([0, 1, 3], pipe)):
        try:
            made = tiles_of(pipe, more_from=more_from)
        except AttachError:
            return
    assert relative_error(made, full) < 0.1


def test_sites_inside_of_a_denoiser_refuse_views():
    from adaptcache.runtime.runner import Runner
    from adaptcache.schedule.rule import Rule

    pipe = tiled()
    schedule = plan_of([0, 1, 3], pipe)
    assert Runner(schedule).follows_views
    rule = Rule(site="blocks", policy=schedule.rules[0].policy, forecast=schedule.rules[0].forecast)
    assert not Runner(schedule.model_copy(update={"rules": (rule,)})).follows_views
