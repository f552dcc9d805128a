"""Tuning that is killed at any moment continues: nothing is lost, and nothing counted twice."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CALL, STEPS, embedded, tiny_flux

from adaptcache.tuning import Front
from adaptcache.tuning.tune import tune

TRIALS = 10


def tuning(folder: Path) -> None:
    from adaptcache.tuning import study

    torch.set_num_threads(1)
    study.BEAT, study.GRACE = 1, 2
    prompts = embedded(9)
    found = tune(
        tiny_flux(), prompts[:6], STEPS, pipe_kwargs=CALL.arguments, speed=2, eval_prompts=prompts[6:],
        batch_size=3, trials=TRIALS, resume=True, cache_dir=folder, progress=False,
    )  # fmt: skip
    found.front.save(folder / "result.json")


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork") or not Path("/proc/self/stat").exists(), reason="needs Linux")
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_killed_three_times_it_has_made_each_trial_once(seed: int, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    from benchmarks.kills import count_trials, disturbed, run

    seconds = run(tuning, tmp_path / "whole")
    assert seconds is not None
    moments = disturbed(tuning, tmp_path / "killed", 3, seconds, np.random.default_rng(seed))
    assert moments
    counts = [count_trials(tmp_path / name, STEPS) for name in ("whole", "killed")]
    assert [len(count) for count in counts] == [TRIALS, TRIALS]
    assert set(counts[0].values()) == set(counts[1].values()) == {1}
    whole, killed = (Front.load(tmp_path / name / "result.json") for name in ("whole", "killed"))
    assert killed.trials == whole.trials == TRIALS and killed.points[0].gain >= 0
