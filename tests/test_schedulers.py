"""Every kind of scheduler: bits, noise streams, and weights that beat plain reuse."""

from dataclasses import replace

import diffusers
import pytest
import torch

import adaptcache
from adaptcache.calibration.match import target_output
from adaptcache.engines.diffusers.gate import Gate
from adaptcache.engines.diffusers.grid import spread
from adaptcache.forecasts.extrapolate import Extrapolate
from adaptcache.hooks import StepHook
from tests.pipelines.table import built, generated, grid_of, planned, same
from tests.pipelines.unet import SCHEDULE

FLOW = {  # with the pipeline that is run; sigmas and shifts are its own
    "FlowMatchEuler": ("Stable Diffusion 3", diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)),
    "FlowMatchEuler, dynamic shift": (
        "Flux",
        diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    ),
    "FlowMatchEuler, stochastic": (
        "Stable Diffusion 3",
        diffusers.FlowMatchEulerDiscreteScheduler(stochastic_sampling=True),
    ),
    "FlowMatchHeun": ("Stable Diffusion 3", diffusers.FlowMatchHeunDiscreteScheduler(shift=3.0)),
    "UniPC, flow": (
        "Stable Diffusion 3",
        diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
    ),
}
DIFFUSION = {
    "DDIM": diffusers.DDIMScheduler(**SCHEDULE, clip_sample=False),
    "DDPM": diffusers.DDPMScheduler(**SCHEDULE, clip_sample=False),
    "Euler": diffusers.EulerDiscreteScheduler(**SCHEDULE),
    "Euler ancestral": diffusers.EulerAncestralDiscreteScheduler(**SCHEDULE),
    "Heun": diffusers.HeunDiscreteScheduler(**SCHEDULE),
    "PNDM": diffusers.PNDMScheduler(**SCHEDULE, skip_prk_steps=True),
    "LMS": diffusers.LMSDiscreteScheduler(**SCHEDULE),
    "DEIS": diffusers.DEISMultistepScheduler(**SCHEDULE),
    "KDPM2": diffusers.KDPM2DiscreteScheduler(**SCHEDULE),
    "DPM++ 2M": diffusers.DPMSolverMultistepScheduler(**SCHEDULE),
    "DPM++ 2M Karras": diffusers.DPMSolverMultistepScheduler(**SCHEDULE, use_karras_sigmas=True),
    "DPM++ 2M SDE": diffusers.DPMSolverMultistepScheduler(**SCHEDULE, algorithm_type="sde-dpmsolver++"),
    "DPM++ SDE": diffusers.DPMSolverSDEScheduler(**SCHEDULE),
    "DPM++ 2S": diffusers.DPMSolverSinglestepScheduler(**SCHEDULE),
    "UniPC": diffusers.UniPCMultistepScheduler(**SCHEDULE),
    "LCM": diffusers.LCMScheduler(**SCHEDULE, clip_sample=False),
    "TCD": diffusers.TCDScheduler(**SCHEDULE, clip_sample=False),
}
SCHEDULERS = FLOW | {name: ("Stable Diffusion 1.5", scheduler) for name, scheduler in DIFFUSION.items()}
FAST = ("FlowMatchEuler", "FlowMatchHeun", "DDIM", "Euler ancestral", "DPM++ 2M", "DPM++ SDE", "UniPC", "LCM")
everywhere = pytest.mark.parametrize("name", SCHEDULERS)
calibrated = pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in SCHEDULERS]
)


def with_scheduler(name, steps=8):
    pipeline, scheduler = SCHEDULERS[name]
    setup = built(pipeline)
    setup.pipe.scheduler = type(scheduler).from_config(scheduler.config)
    return replace(setup, steps=steps)


def drawn(setup):
    """Returns a run's result and where it left its generator."""
    generator = torch.Generator().manual_seed(1)
    return generated(setup, generator=generator), generator.get_state()


@everywhere
def test_a_plan_of_all_steps_changes_no_bit(name):
    setup = with_scheduler(name)
    plain = generated(setup)
    with adaptcache.attach(setup.pipe, planned(setup, range(len(grid_of(setup))))) as handle:
        assert same(generated(setup), plain)
    assert handle.report().skipped == 0


@everywhere
def test_cached_and_full_runs_draw_the_same_noise(name):
    setup = with_scheduler(name)
    full, state = drawn(setup)
    with adaptcache.attach(setup.pipe, planned(setup, [0, 1, 3, 5])):
        cached, cached_state = drawn(setup)
    assert torch.equal(cached_state, state) and not same(cached, full)


@calibrated
def test_matched_weights_beat_plain_reuse_at_the_same_plan(name):
    setup = with_scheduler(name)
    matched = adaptcache.calibrate(setup.pipe, setup.prompts[:2], 8, budget=0.5, pipe_kwargs=setup.call)
    plan = matched.rules[0].policy.steps(matched.grid.times)
    reuse = planned(setup, plan, Extrapolate(order=0))
    truth = generated(setup, sample=2)
    errors = []
    for schedule in (matched, reuse):
        with adaptcache.attach(setup.pipe, schedule) as handle:
            made = generated(setup, sample=2)
        assert handle.report().computed == plan
        errors.append(float((made[0] - truth[0]).square().mean() / truth[0].var()))
    assert errors[0] < errors[1]


def test_times_that_come_twice_are_spread_towards_the_time_before():
    assert spread([1.0, 0.5, 0.5, 0.25]) == (1.0, 0.75, 0.5, 0.25)
    assert spread([1.0, 0.4, 0.4, 0.4]) == pytest.approx((1.0, 0.8, 0.6, 0.4))
    assert spread([0.9, 0.3]) == (0.9, 0.3)


class Aims(StepHook):
    """Asks at each step for the model output that leads where the full run goes."""

    def __init__(self):
        self.share = []

    def model_output(self, step):
        target = target_output(step, step.preview(step.u))
        if target is not None:
            self.share.append(float((target * step.u).sum() / step.u.float().square().sum()))
        return step.u


def aimed(setup):
    hook = Aims()
    gate = Gate(setup.pipe, hook).open()
    generated(setup)
    gate.close()
    return hook.share


@everywhere
def test_previews_find_the_output_that_led_to_a_landing(name):
    setup = with_scheduler(name)
    shares = aimed(setup)
    assert len(shares) >= len(grid_of(setup)) - 1  # the last step may not depend on the output
    assert shares == pytest.approx([1.0] * len(shares), rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_previews_find_it_in_half_precision(dtype):
    setup = with_scheduler("FlowMatchEuler, dynamic shift", steps=20)
    setup.pipe.to(dtype)
    rows = [{name: value.to(dtype) for name, value in row.items()} for row in setup.prompts]
    shares = aimed(replace(setup, prompts=rows))
    assert len(shares) == 20
    assert shares == pytest.approx([1.0] * 20, rel=0.05)


def test_previews_keep_latents_in_single_precision_where_outputs_are_in_half():
    setup = replace(built("Wan 2.1"), steps=20)
    setup.pipe.to(torch.bfloat16)
    call = {k: v.bfloat16() if isinstance(v, torch.Tensor) else v for k, v in setup.call.items()}
    rows = [{name: value.bfloat16() for name, value in row.items()} for row in setup.prompts]
    shares = aimed(replace(setup, call=call, prompts=rows))
    assert len(shares) >= 19 and shares == pytest.approx([1.0] * len(shares), rel=0.01)
