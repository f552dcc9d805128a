"""Samplers whose timesteps repeat, but not to the last bit."""

import itertools

import diffusers
import pytest
import torch

import adaptcache
from adaptcache.engines.diffusers.grid import times_of
from tests.pipelines.table import built, generated
from tests.pipelines.unet import SCHEDULE


@pytest.fixture
def scheduler():
    return diffusers.KDPM2AncestralDiscreteScheduler(**SCHEDULE)


def gaps(scheduler, steps):
    scheduler.set_timesteps(steps)
    return [earlier - later for earlier, later in itertools.pairwise(times_of(scheduler))]


@pytest.mark.parametrize("steps", [10, 19, 28])
def test_times_fall_where_rounding_has_them_rise(scheduler, steps):
    assert min(gaps(scheduler, steps)) > 0


@pytest.mark.parametrize("steps", [8, 12, 50])
def test_times_that_are_equal_but_for_float32_are_spread_like_equal_ones(scheduler, steps):
    assert min(gaps(scheduler, steps)) > 1e-6


def test_kdpm2_ancestral_of_ten_steps_is_calibrated_and_exact_when_all_is_computed(scheduler):
    setup = built("Stable Diffusion 1.5")
    setup.pipe.scheduler = scheduler
    (full,) = generated(setup, num_inference_steps=10)
    schedule = adaptcache.calibrate(
        setup.pipe, setup.prompts[:2], num_inference_steps=10, budget=1.0, pipe_kwargs=setup.call
    )
    with adaptcache.attach(setup.pipe, schedule, strict=True):
        (image,) = generated(setup, num_inference_steps=10)
    assert torch.equal(image, full)
