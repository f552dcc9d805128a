"""A schedule on grids it was not fitted on: planned anew, or refused."""

from dataclasses import replace

import diffusers
import pytest

import adaptcache
from adaptcache.errors import ScheduleError
from tests.pipelines.flux import flux_img2img
from tests.pipelines.table import built, generated

STEPS = 10


@pytest.fixture(scope="module")
def fitted():
    setup = replace(built("Flux"), steps=STEPS)
    schedule = adaptcache.calibrate(setup.pipe, setup.prompts[:2], steps=STEPS, budget=0.5, call=setup.call)
    return setup, schedule


def error(a, b):
    return float((a[0] - b[0]).square().mean() / b[0].var())


@pytest.mark.filterwarnings("ignore:.*other configuration")
@pytest.mark.parametrize("steps", [6, 9, 14, 20])
def test_other_steps_are_planned_anew_with_the_same_budget(fitted, steps):
    setup, schedule = fitted
    full = generated(setup, sample=2, num_inference_steps=steps)
    with adaptcache.attach(setup.pipe, schedule) as handle, pytest.warns(UserWarning, match="planned anew"):
        cached = generated(setup, sample=2, num_inference_steps=steps)
    assert handle.report().made == round(steps / 2) and handle.report().evidence == "extrapolated"
    assert error(cached, full) < 0.01


def test_its_own_steps_are_run_as_calibrated_before_and_after_others(fitted):
    setup, schedule = fitted
    with adaptcache.attach(setup.pipe, schedule) as handle:
        first = generated(setup, sample=2)
        assert handle.report().evidence == "calibrated"
        with pytest.warns(UserWarning, match="planned anew"):
            generated(setup, num_inference_steps=7)
        assert error(generated(setup, sample=2), first) == 0
        assert handle.report().evidence == "calibrated"


def test_another_shift_is_planned_anew(fitted):
    _, schedule = fitted
    other = built("Flux")
    other.pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=5.0)
    other = replace(other, steps=STEPS)
    full = generated(other, sample=2)
    with adaptcache.attach(other.pipe, schedule) as handle, pytest.warns(UserWarning, match="planned anew"):
        cached = generated(other, sample=2)
    assert handle.report().made == STEPS // 2 and error(cached, full) < 0.01


@pytest.mark.parametrize(("strength", "steps"), [(0.8, 8), (0.5, 5)])
def test_image_to_image_is_planned_anew_from_where_it_starts(fitted, strength, steps):
    setup, schedule = fitted
    pipe = diffusers.FluxImg2ImgPipeline(**setup.pipe.components)
    pipe.set_progress_bar_config(disable=True)
    other = replace(setup, pipe=pipe, call={**flux_img2img().call, "strength": strength})
    full = generated(other, sample=2)
    with adaptcache.attach(pipe, schedule) as handle, pytest.warns(UserWarning, match="planned anew"):
        cached = generated(other, sample=2)
    assert len(handle.report().calls) == steps and handle.report().made == max(1, round(steps / 2))
    assert error(cached, full) < 0.05


def test_strict_refuses_other_steps_and_leaves_a_plain_pipeline(fitted):
    setup, schedule = fitted
    plain = generated(setup, num_inference_steps=7)
    handle = adaptcache.attach(setup.pipe, schedule, strict=True)
    with pytest.raises(ScheduleError, match="7 steps"):
        generated(setup, num_inference_steps=7)
    generated(setup)
    handle.close()
    assert error(generated(setup, num_inference_steps=7), plain) == 0
