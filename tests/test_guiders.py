"""Guiders of modular pipelines: they see repeated outputs at skipped steps, and some of them remember."""

import pytest
import torch
from diffusers.guiders import (
    AdaptiveProjectedGuidance,
    ClassifierFreeGuidance,
    ClassifierFreeZeroStarGuidance,
    TangentialClassifierFreeGuidance,
)
from diffusers.modular_pipelines.z_image.modular_blocks_z_image import ZImageAutoBlocks

import adaptcache
from adaptcache.engines.diffusers.identity import fingerprint
from adaptcache.forecasts.extrapolate import Extrapolate
from adaptcache.policies.plan import Plan
from adaptcache.schedule.format import Grid
from adaptcache.schedule.rule import Rule
from adaptcache.schedule.schedule import Schedule
from tests.pipelines.setup import noise
from tests.pipelines.table import built, counted

STEPS = 8
GUIDERS = {
    "classifier-free": (ClassifierFreeGuidance(3.0), [2] * STEPS),
    "classifier-free, for the first steps": (ClassifierFreeGuidance(3.0, stop=0.5), [2] * 4 + [1] * 4),
    "classifier-free, for the last steps": (ClassifierFreeGuidance(3.0, start=0.5), [1] * 4 + [2] * 4),
    "zero star": (ClassifierFreeZeroStarGuidance(3.0), [2] * STEPS),
    "adaptive projected": (AdaptiveProjectedGuidance(3.0), [2] * STEPS),
    "adaptive projected, with momentum": (
        AdaptiveProjectedGuidance(3.0, adaptive_projected_guidance_momentum=-0.5), [2] * STEPS
    ),
    "tangential": (TangentialClassifierFreeGuidance(3.0), [2] * STEPS),
}  # fmt: skip
everywhere = pytest.mark.parametrize("name", GUIDERS)


def guided(name):
    """Returns a modular pipeline with a guider, whatever it remembers from before forgotten."""
    parts = built("Z-Image").pipe
    blocks = ZImageAutoBlocks()
    for block in ("text_encoder", "vae_encoder", "decode"):
        blocks.sub_blocks.pop(block)
    pipe = blocks.init_pipeline()
    guider = GUIDERS[name][0]
    guider = type(guider).from_config(guider.config)
    pipe.update_components(transformer=parts.transformer, scheduler=parts.scheduler, guider=guider)
    return pipe


def run(pipe):
    generator = torch.Generator().manual_seed(0)
    embeds = {"prompt_embeds": [noise(1, 5, 16)], "negative_prompt_embeds": [noise(2, 5, 16)]}
    size = {"height": 64, "width": 64, "num_inference_steps": STEPS}
    return pipe(**embeds, **size, generator=generator, output="latents")


def by_hand(pipe, steps):
    run(pipe)
    times = tuple(float(t) / 1000 for t in pipe.scheduler.timesteps)
    return Schedule(
        name="by hand",
        denoiser=fingerprint(pipe),
        grid=Grid(scheduler="FlowMatchEulerDiscreteScheduler", times=times),
        rules=(Rule(policy=Plan.of(list(steps), times), forecast=Extrapolate(order=1)),),
    )


@everywhere
def test_a_plan_of_all_steps_changes_no_bit(name):
    full = run(guided(name))
    schedule = by_hand(guided(name), range(STEPS))
    pipe = guided(name)
    with adaptcache.attach(pipe, schedule) as handle:
        assert torch.equal(run(pipe), full)
    assert [len(branches) for branches in handle.report().calls] == GUIDERS[name][1]


@everywhere
def test_skipped_steps_call_nothing_and_stay_close(name):
    full = run(guided(name))
    plan = [0, 1, 2, 4, 6]
    schedule = by_hand(guided(name), plan)
    pipe = guided(name)
    with adaptcache.attach(pipe, schedule) as handle, counted(pipe) as calls:
        cached = run(pipe)
    assert handle.report().computed == plan
    assert len(calls) == sum(GUIDERS[name][1][i] for i in plan)
    assert float((cached - full).square().mean() / full.var()) < 0.05
