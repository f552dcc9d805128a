"""What `allow` lets a run do that would be refused."""

import pytest

import adaptcache
from adaptcache.errors import ScheduleError
from tests.pipelines.table import built, generated


def test_guidance_far_beyond_the_calibrated_one_is_refused_unless_it_is_allowed():
    setup = built("Stable Diffusion 1.5")
    schedule = adaptcache.calibrate(
        setup.pipe, setup.prompts[:2], setup.steps, budget=0.5, eval_prompts=setup.prompts[2:],
        pipe_kwargs={**setup.call, "guidance_scale": 2.0},
    )  # fmt: skip
    with adaptcache.attach(setup.pipe, schedule):
        generated(setup, guidance_scale=3.0)
        with pytest.raises(ScheduleError, match="guidance"):
            generated(setup, guidance_scale=9.0)
    with adaptcache.attach(setup.pipe, schedule, allow="guidance") as handle:
        generated(setup, guidance_scale=9.0)
        assert handle.report().skipped and handle.report().evidence == "extrapolated"


def test_what_cannot_be_allowed_is_named():
    setup = built("Stable Diffusion 1.5")
    schedule = adaptcache.calibrate(setup.pipe, setup.prompts[:2], setup.steps, budget=0.5, pipe_kwargs=setup.call)
    with pytest.raises(ValueError, match="allow takes a list of findings"):
        adaptcache.attach(setup.pipe, schedule, allow=("everything",))
