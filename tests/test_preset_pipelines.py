"""Every preset, end to end: a tiny pipeline of its class is saved, loaded by it, calibrated, attached."""

from __future__ import annotations

import inspect
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

import adaptcache
from adaptcache.engines.diffusers.components import denoisers_of
from adaptcache.limits import KERNEL_STEPS
from adaptcache.presets import Preset, names
from tests.pipelines.setup import Setup, noise
from tests.pipelines.table import MORE, TABLE, built, generated

SIZES = {
    "height",
    "width",
    "num_frames",
    "frame_rate",
    "audio_end_in_s",
    "audio_duration",
}  # tiny here; all else is the preset's
OF_ITS_OWN = {"wan2.2": "Wan 2.2"}  # two presets of one class
BUILT = names()
FAST = ("flux", "flux-schnell", "sdxl", "sd3.5")
STEPS = 8


def tiny(preset: Preset) -> Setup:
    """Builds a tiny pipeline of the class of a preset."""
    return built(OF_ITS_OWN.get(preset.name) or by_class()[preset.pipeline])


@cache
def by_class() -> dict[str, str]:
    """Returns the names of the tiny pipelines by class, the plainest of each."""
    return {name: name for name in MORE} | {type(built(name).pipe).__name__: name for name in reversed(TABLE)}


def loaded(preset: Preset, setup: Setup, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Saves the pipeline and loads it by the preset; text encoders, which it has none of, are left out.

    Those that are made for a run only (blocks without texts; methods that answer) are taken as they are.
    """
    if preset.pipeline in MORE:
        return setup.pipe.to(getattr(torch, preset.dtype if preset.dtype != "float16" else "float32"))
    kind = getattr(diffusers, preset.pipeline)
    missing = {name: part for name, part in setup.pipe.components.items() if part is None}
    original = kind.from_pretrained
    setup.pipe.save_pretrained(folder)
    monkeypatch.setattr(kind, "from_pretrained", lambda path, **how: original(path, **missing, **how))
    pipe = preset.load_pipeline("cpu", folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def called(preset: Preset, setup: Setup, pipe: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Returns the arguments of a call: those of the preset but for sizes, with embeddings for texts."""
    dtype = next(denoisers_of(pipe)[0].parameters()).dtype
    known = inspect.signature(pipe.__call__).parameters
    rows = [{name: cast(value, dtype) for name, value in row.items()} for row in setup.prompts[:2]]
    negative = {
        f"negative_{name}": cast(like(value), dtype)
        for name, value in setup.prompts[0].items()
        if f"negative_{name}" in known
    }
    own = {k: v for k, v in preset.call.items() if k not in SIZES and k != "negative_prompt"}
    rest = {name: cast(value, dtype) for name, value in setup.call.items()}
    return {**negative, **rest, **own}, rows


def like(value: Any) -> Any:
    """Returns the same for the other branch: other noise, and the same mask."""
    if isinstance(value, list):
        return [like(part) for part in value]
    return noise(5, *value.shape) if value.is_floating_point() else value


def cast(value: Any, dtype: torch.dtype) -> Any:
    """Returns tensors of real numbers in another precision."""
    if isinstance(value, list):
        return [cast(part, dtype) for part in value]
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def test_every_preset_has_a_tiny_pipeline_of_its_class_and_steps_a_schedule_can_hold() -> None:
    presets = [Preset.load(name) for name in BUILT]
    assert len(presets) >= 20
    assert {preset.pipeline for preset in presets} <= by_class().keys()
    assert all(preset.steps <= KERNEL_STEPS for preset in presets)


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in BUILT]
)
def test_a_preset_loads_calibrates_and_runs_a_pipeline_of_its_class(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preset = Preset.load(name)
    setup = tiny(preset)
    pipe = loaded(preset, setup, tmp_path / "tiny", monkeypatch)
    call, rows = called(preset, setup, pipe)
    steps = min(preset.steps, STEPS)
    schedule = adaptcache.calibrate(pipe, rows[:1], steps=steps, budget=0.5, call=call)
    run = Setup(pipe, call, rows, setup.branches, steps)
    full = generated(run, sample=1)
    with adaptcache.attach(pipe, schedule, strict=True) as handle:
        cached = generated(run, sample=1)
    report = handle.report()
    assert report.evidence == "calibrated" and 0 <= report.made - report.skipped <= setup.branches
    assert all(tensor.isfinite().all() for tensor in cached)
    errors = [(a.float() - b.float()).square().mean() / b.float().var() for a, b in zip(cached, full, strict=True)]
    assert 0 < max(errors) < 0.2
