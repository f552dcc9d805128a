"""One calibration over several processes: the same numbers, one voice, and an end to everything."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CALL, STEPS, embedded, tiny_flux

import adaptcache
from adaptcache.cache import Cache
from adaptcache.distributed import ALONE, RankError, joined
from adaptcache.profiling.measure import measure
from adaptcache.runs import PromptSet
from tests.processes import LIMIT, free_port, launch

HELD_OUT = 3


def calibrated(
    count: int, batch_size: int, folder: str | None = None, broken: int = -1, killed: int = -1, wait: int = 0
) -> tuple[Any, adaptcache.Schedule, int]:
    """Calibrates on some prompts in whatever processes there are; returns profile, schedule, and runs made.

    Arguments:
        broken: The rank whose denoiser overflows, from its call number `wait` on.
        killed: The rank that is killed there.
    """
    pipe, calls = tiny_flux(), []
    everyone = embedded(count + HELD_OUT)
    cache = Cache(folder) if folder else None
    with joined() as ranks:

        def hook(module: Any, args: Any, output: Any) -> None:
            calls.append(1)
            if ranks.rank == killed and len(calls) > wait:
                os.kill(os.getpid(), signal.SIGKILL)
            if ranks.rank == broken and len(calls) > wait:
                output[0].fill_(float("nan"))

        pipe.transformer.register_forward_hook(hook)
        shared: dict[str, Any] = {"batch_size": batch_size, "cache": cache, "ranks": ranks}
        measured = measure(CALL.of(pipe, **shared), PromptSet.of(everyone[:count]))
        schedule = adaptcache.calibrate(
            pipe, everyone[:count], num_inference_steps=STEPS, budget=0.5,
            pipe_kwargs=dict(CALL.arguments), eval_prompts=everyone[count:], **shared,
        )  # fmt: skip
    return measured.profile, schedule, len(calls)


def alone(*given: Any) -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return calibrated(*given)
    finally:
        torch.set_num_threads(threads)


def same(results: list[Any], expected: Any) -> None:
    """Every rank has the profile and the schedule of one process, to the bit."""
    for profile, schedule, _ in results:
        for field in fields(profile):
            if field.name != "about":
                np.testing.assert_array_equal(getattr(profile, field.name), getattr(expected[0], field.name))
        assert schedule == expected[1] and schedule.evidence is not None


def test_two_ranks_give_the_profile_and_the_schedule_of_one_and_share_its_work(tmp_path: Path) -> None:
    expected = alone(5, 2)  # three batches: one rank has two, the other one
    results = launch(calibrated, 2, 5, 2)
    same(results, expected)
    total = sum(calls for *_, calls in results)
    assert (
        total == expected[2] and max(calls for *_, calls in results) < 0.75 * total
    )  # plans are searched on one batch


@pytest.mark.slow
@pytest.mark.parametrize(("size", "count", "batch_size"), [(4, 6, 1), (4, 7, 2), (4, 2, 1), (3, 1, 1)])
def test_any_number_of_ranks_gives_what_one_does(size: int, count: int, batch_size: int) -> None:
    same(launch(calibrated, size, count, batch_size), alone(count, batch_size))


def test_a_rank_that_fails_ends_all_of_them_and_says_why() -> None:
    failed, other = launch(calibrated, 2, 2, 1, None, 0, -1, 3)
    assert failed.startswith("ValueError: the denoiser's output of prompt 0 at step 3")
    assert other.startswith("RankError: rank 0 of 2 failed: the denoiser's output of prompt 0 at step 3")


@pytest.mark.slow
@pytest.mark.parametrize("wait", [STEPS + 2, 4 * STEPS])
def test_whenever_a_rank_of_four_fails_nobody_waits_for_it(wait: int) -> None:
    results = launch(calibrated, 4, 5, 1, None, 1, -1, wait)
    assert all(str(result).split(":")[0] in ("ValueError", "RankError") for result in results)
    assert sum("ValueError" in str(result).split(":")[0] for result in results) == 1


def test_a_rank_that_is_killed_ends_the_other_with_an_error() -> None:
    other, killed = launch(calibrated, 2, 2, 1, None, -1, 1, 3)
    assert killed == -signal.SIGKILL
    assert other.startswith("RankError: rank 0 lost the connection to another rank")


@pytest.mark.slow
def test_ranks_go_on_where_they_were_and_others_use_what_they_kept(tmp_path: Path) -> None:
    expected = alone(4, 1)
    launch(calibrated, 2, 4, 1, str(tmp_path), -1, 1, 12)
    kept = {path.name: path.read_bytes() for path in tmp_path.rglob("batch-*")}
    assert kept
    results = launch(calibrated, 2, 4, 1, str(tmp_path))
    same(results, expected)
    assert sum(calls for *_, calls in results) < expected[2]
    assert kept.items() <= {path.name: path.read_bytes() for path in tmp_path.rglob("batch-*")}.items()
    again = alone(4, 1, str(tmp_path))  # one process finds what two have kept: nothing is run in full
    same([again], expected)
    assert launch(calibrated, 4, 4, 1, str(tmp_path))[0][1] == expected[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        ["torch.distributed.run", "--nproc_per_node", "2", "--master_port"],
        ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port"],
    ],
    ids=["torchrun", "accelerate"],
)
def test_launchers_start_the_command_and_one_schedule_is_written(launcher: list, tmp_path: Path) -> None:
    words = ["calibrate", "--steps", "4", "--fit-on", "4", "--eval-on", "2", "--batch-size", "1"]
    command = [*words, "--no-cache", "--speed", "2", "--out", str(tmp_path / "s.json"), "--json"]
    root = str(Path(adaptcache.__file__).parents[1])
    known = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    whole = [sys.executable, "-m", *launcher, str(free_port()), "-m", "adaptcache", *command]
    done = subprocess.run(whole, env=known, cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["evidence"]["n"] == 2  # one document
    together = (tmp_path / "s.json").read_bytes()
    whole = [sys.executable, "-m", "adaptcache", *command]
    subprocess.run(whole, env=known, cwd=tmp_path, capture_output=True, check=True, timeout=LIMIT)
    assert (tmp_path / "s.json").read_bytes() == together


def test_one_process_exchanges_nothing() -> None:
    with joined() as ranks:
        assert ranks is ALONE and ranks.exchange(3) == [3] and ranks.first(4) == 4
    with pytest.raises(ZeroDivisionError), joined():
        raise ZeroDivisionError
    assert ALONE.each(3, lambda number: number**2) == [0, 1, 4]
    assert issubclass(RankError, RuntimeError)
