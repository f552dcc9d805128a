"""Images of full runs that one verb keeps are found by the next: calibrate, gears and tune on one cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy import PROMPTS, Pipe

import adaptcache
from adaptcache.evaluation import generate as generation
from adaptcache.schedule.schedule import Schedule

HELD_OUT = ["one", "three", "five more", "seven and a bit", "nine at most and no more"]
HOW: dict[str, Any] = {
    "num_inference_steps": 12,
    "eval_prompts": HELD_OUT,
    "batch_size": 2,
    "progress": False,
}
# more held out than a batch has


class Painter(Pipe):
    """Returns images where they are asked for."""

    def __call__(
        self, prompt: Any, num_inference_steps: int = 12, generator: Any = None, output_type: str = "latent",
        return_dict: bool = False,
    ) -> Any:  # fmt: skip
        (x,) = super().__call__(prompt, num_inference_steps, generator)
        return (x if output_type == "latent" else np.clip(x.numpy()[..., None] / 4 + 0.5, 0, 1),)


def calibrated(folder: Path) -> Schedule:
    return adaptcache.calibrate(Painter(), PROMPTS, speed=3, cache_dir=folder, **HOW)


def geared(folder: Path) -> Schedule:
    return adaptcache.calibrate(Painter(), PROMPTS, gears=(0.25, 0.5), min_psnr=30, cache_dir=folder, **HOW)


def tuned(folder: Path) -> Schedule:
    pytest.importorskip("optuna")
    return adaptcache.tune(Painter(), PROMPTS, speed=3, trials=12, cache_dir=folder, **HOW).schedule


VERBS: dict[str, Callable[[Path], Schedule]] = {"calibrate": calibrated, "gears": geared, "tune": tuned}
ORDERS = ["calibrate, tune", "calibrate, gears", "tune, calibrate", "gears, calibrate"]


@contextmanager
def full_runs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Gives the first numbers of the held-out batches that are run in full."""
    made, generate = [], generation.generate

    def counted(setup: Any, prompts: Any, schedule: Any = None, **more: Any) -> Any:
        if schedule is None and prompts.first >= len(PROMPTS):
            made.append(prompts.first)
        return generate(setup, prompts, schedule, **more)

    with monkeypatch.context() as patch:
        patch.setattr(generation, "generate", counted)
        yield made


@pytest.mark.parametrize("order", ORDERS)
def test_a_second_verb_on_the_same_cache_gives_what_it_gives_alone(order: str, tmp_path: Path) -> None:
    first, second = (VERBS[name] for name in order.split(", "))
    first(tmp_path / "shared")
    shared, own = (second(tmp_path / name) for name in ("shared", "own"))
    assert shared.evidence and own.evidence and shared.evidence.psnr == own.evidence.psnr


@pytest.mark.parametrize("order", ORDERS)
def test_a_second_verb_runs_no_held_out_prompt_in_full(
    order: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (VERBS[name] for name in order.split(", "))
    with full_runs(monkeypatch) as made:
        first(tmp_path)
    assert made == [4, 6, 8]
    with full_runs(monkeypatch) as made:
        second(tmp_path)
    assert made == []
