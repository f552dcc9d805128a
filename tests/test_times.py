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


@pytest.mark.parametrize(
    "scheduler",
    [
        diffusers.KDPM2DiscreteScheduler(**SCHEDULE, use_karras_sigmas=True),
        diffusers.HeunDiscreteScheduler(**SCHEDULE, use_exponential_sigmas=True),
        diffusers.EulerDiscreteScheduler(**SCHEDULE, timestep_spacing="trailing", final_sigmas_type="sigma_min"),
    ],
    ids=["two steps at a time, Karras", "Heun, exponential", "trailing, ends above zero"],
)
def test_times_of_other_spacings_fall_and_calibrating_on_them_is_exact_when_all_is_computed(scheduler):
    setup = built("Stable Diffusion 1.5")
    setup.pipe.scheduler = scheduler
    assert min(gaps(scheduler, 7)) > 0
    (full,) = generated(setup, num_inference_steps=7)
    schedule = adaptcache.calibrate(
        setup.pipe, setup.prompts[:2], num_inference_steps=7, budget=1.0, pipe_kwargs=setup.call
    )
    with adaptcache.attach(setup.pipe, schedule, strict=True):
        (image,) = generated(setup, num_inference_steps=7)
    assert torch.equal(image, full)


def test_sigmas_of_ones_own_are_followed_and_others_are_not_called_calibrated():
    setup, sigmas = built("Flux"), [1.0, 0.9, 0.9 - 1e-7, 0.5, 0.2]  # two that differ by rounding
    plain = generated(setup, sigmas=sigmas, num_inference_steps=5)
    schedule = adaptcache.calibrate(
        setup.pipe, setup.prompts[:2], num_inference_steps=5, budget=0.6, pipe_kwargs={**setup.call, "sigmas": sigmas}
    )
    with adaptcache.attach(setup.pipe, schedule) as handle:
        cached = generated(setup, sigmas=sigmas, num_inference_steps=5)
        assert handle.report().evidence == "calibrated" and len(handle.report().computed) == 3
        with pytest.warns(UserWarning):
            generated(setup, sigmas=[1.0, 0.8, 0.6, 0.4, 0.2], num_inference_steps=5)
        assert handle.report().evidence == "extrapolated"
    assert cached[0].isfinite().all() and not torch.equal(cached[0], plain[0])
