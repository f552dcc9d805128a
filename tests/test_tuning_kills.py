"""Tuning that is killed at any moment goes on, and ends with the same bytes and each trial once."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CALL, STEPS, embedded, tiny_flux

from adaptcache.tuning.tune import tune

TRIALS = 10


def tuning(folder: Path) -> None:
    torch.set_num_threads(1)
    prompts = embedded(9)
    found = tune(
        tiny_flux(), prompts[:6], steps=STEPS, call=CALL.arguments, speed=2, held_out=prompts[6:],
        batch_size=3, trials=TRIALS, resume=True, store=Store(folder),
    )  # fmt: skip
    found.front.save(folder / "result.json")


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork") or not Path("/proc/self/stat").exists(), reason="needs Linux")
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_killed_three_times_it_ends_as_if_nothing_had_happened(seed: int, tmp_path: Path) -> None:
    from benchmarks.kills import disturbed, run, slots

    seconds = run(tuning, tmp_path / "whole")
    assert seconds is not None
    moments = disturbed(tuning, tmp_path / "killed", 3, seconds, np.random.default_rng(seed))
    assert moments
    results = [(tmp_path / name / "result.json").read_bytes() for name in ("whole", "killed")]
    assert results[0] == results[1]
    assert slots(tmp_path / "killed") == dict.fromkeys(range(TRIALS), 1)
