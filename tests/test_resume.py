"""Profiling that is killed goes on where it was, and ends with the same bytes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import CALL, STEPS, embedded, tiny_flux

import adaptcache
from adaptcache.cache import Cache
from adaptcache.engines.diffusers.engine import DiffusersEngine
from tests.kills import kills

PROFILES = {"batch_size": 2, "budget": 0.5}
PARTS = 3 + STEPS - 1 + 1  # batches, sensitivities, profile

PROGRAM = """
import os, signal, sys
sys.path[:0] = {paths!r}
import adaptcache.files, adaptcache.cache, adaptcache.profile
from test_resume import calibrated

left, write = int(sys.argv[2]), adaptcache.files.write_atomically

def killed(path, content):
    global left
    left -= 1
    if left == 0:  # in the middle of a write: half a file lies beside the place of the whole one
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_name("." + path.name + ".half").write_bytes(content[: len(content) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    return write(path, content)

adaptcache.cache.write_atomically = adaptcache.profile.write_atomically = killed
calibrated(sys.argv[1])
"""


def calibrated(folder: str | Path) -> adaptcache.Schedule:
    return adaptcache.calibrate(
        tiny_flux(), embedded(6), STEPS, pipe_kwargs=dict(CALL.arguments), cache_dir=Cache(folder), **PROFILES
    )


def contents(folder: Path) -> dict[str, bytes]:
    """Returns all finished files of a folder, by their place in it: keys are the same in any process."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name[0] != "."]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def killed_at(write: int, folder: Path) -> None:
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    program = [sys.executable, "-c", PROGRAM.format(paths=paths), str(folder), str(write)]
    done = subprocess.run(program, env=environment, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("write", [1, 3, 6, PARTS])
def test_killed_while_it_writes_it_goes_on_and_gives_the_same_bytes(write: int, tmp_path: Path) -> None:
    expected = calibrated(tmp_path / "whole").save(tmp_path / "whole.json").read_bytes()
    killed_at(write, tmp_path / "killed")
    before = contents(tmp_path / "killed")
    assert calibrated(tmp_path / "killed").save(tmp_path / "killed.json").read_bytes() == expected
    after = contents(tmp_path / "killed")
    assert after == contents(tmp_path / "whole")
    batches = {name: content for name, content in before.items() if "batch" in name}
    assert len(batches) == min(write - 1, 3) and batches.items() <= after.items()


@pytest.mark.slow
def test_killed_again_and_again_it_comes_to_an_end_with_the_same_bytes(tmp_path: Path) -> None:
    assert kills(3, tmp_path) == (3, True)


def test_what_is_done_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def run(self: Any, hook: Any, job: Any) -> Any:
        seen.append(job.prompts.first)
        if job.prompts.first == 4 and seen.count(4) == 1:
            raise KeyboardInterrupt
        return original(self, hook, job)

    original = DiffusersEngine.run
    monkeypatch.setattr(DiffusersEngine, "run", run)
    with pytest.raises(KeyboardInterrupt):
        calibrated(tmp_path)
    calibrated(tmp_path)
    full = [first for first in seen[: seen.index(4) + 2]]
    assert full == [0, 2, 4, 4]


def test_a_part_that_is_not_whole_is_measured_again(tmp_path: Path) -> None:
    expected = calibrated(tmp_path)
    for pattern in ("batch-00001.safetensors", "sensitivity-00000.safetensors", "profile.safetensors"):
        (file,) = tmp_path.rglob(pattern)
        file.write_bytes(file.read_bytes()[:-20])
    assert calibrated(tmp_path) == expected
