"""The report says of prompts of another kind that they are unlike the calibration's, and of the same kind nothing."""

from pathlib import Path

import pytest
import torch

import adaptcache
from adaptcache.presets import read_prompts, resolve
from adaptcache.schedule.schedule import Schedule

COUNT = 12
SHIPPED = Path(__file__).parents[1] / "schedules" / "emoji-flux-32-28-4x.json"


@pytest.fixture(scope="module")
def demo():
    """The demo model, its call, and a shipped schedule."""
    preset = resolve("emoji-flux-32")
    pipe = preset.load_pipeline("cpu")
    pipe.set_progress_bar_config(disable=True)
    return pipe, dict(preset.call), Schedule.load(SHIPPED)


def run(demo, prompts, **more):
    pipe, call, _ = demo
    noise = [torch.Generator().manual_seed(1000 + k) for k in range(len(prompts))]
    return pipe(prompts, num_inference_steps=28, output_type="latent", generator=noise, **call, **more)


def test_held_out_prompts_of_the_same_kind_are_not_unlike(demo):
    with adaptcache.attach(demo[0], demo[2], strict=True) as handle:
        assert handle.report().unlike == ""  # before any run
        run(demo, list(read_prompts("emoji-32").held_out[:COUNT]))
        assert handle.report().unlike == "" and handle.report().evidence == "calibrated"


def test_prompts_of_another_kind_are_unlike_and_the_report_prints_it(demo):
    prompts = [text for text in read_prompts("emoji-varied").held_out if "noto style" not in text][:COUNT]
    with adaptcache.attach(demo[0], demo[2]) as handle:
        run(demo, prompts)
        report = handle.report()
        assert report.unlike.startswith("unlike the calibration prompts") and report.unlike in str(report)
        run(demo, list(read_prompts("emoji-32").held_out[COUNT : COUNT + 1]))
        assert "computed steps" not in handle.report().unlike  # of the last call, or of all since attach


def test_one_prompt_is_told_by_the_steps_at_which_it_is_out_of_bounds(demo):
    with adaptcache.attach(demo[0], demo[2], allow=["guidance"]) as handle:
        run(demo, ["pizza noto style blue background"], true_cfg_scale=5.0, negative_prompt=["blurry"])
        assert "computed steps" in handle.report().unlike


def test_on_other_steps_nothing_is_compared(demo):
    pipe, call, schedule = demo
    with adaptcache.attach(pipe, schedule) as handle, pytest.warns(UserWarning, match="planned anew"):
        pipe("a street in the rain", num_inference_steps=12, output_type="latent", **call)
        assert handle.report().unlike == ""
