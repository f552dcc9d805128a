"""Disks that are full, homes that are missing, terminals that are odd: one line, and nothing silently wrong."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from conftest import Run, refused

from adaptcache.cache import Cache
from adaptcache.cli.files import LONGEST, default_name
from adaptcache.engines.formats import export
from adaptcache.errors import ScheduleError
from adaptcache.files import check_writable, write_atomically
from adaptcache.profile import Profile
from adaptcache.profiling.checkpoint import ProfileCheckpoint
from adaptcache.schedule.schedule import Schedule
from tests import toy
from tests.test_cli import SHIPPED


@contextmanager
def full_disk() -> Iterator[None]:
    """Lets no file grow beyond a kilobyte; within a test alone, as what pytest prints may go to a file, too."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_disk_that_is_full_is_said_with_the_file_and_nothing_is_left(tmp_path: Path) -> None:
    with full_disk(), pytest.raises(OSError, match=r"cannot write .*s\.json: File too large"):
        write_atomically(tmp_path / "s.json", b"x" * 5000)
    assert list(tmp_path.iterdir()) == []


def test_a_journal_whose_last_line_was_cut_is_read_and_goes_on(tmp_path: Path) -> None:
    study = pytest.importorskip("adaptcache.tuning.study")
    whole, half = b'{"op_code":0}\n', b'{"op_code":1,"work'
    path = tmp_path / "j.log"
    path.write_bytes(whole + half)
    journal = study.JournalFile(str(path), study.JournalFileOpenLock(str(path)))
    journal.append_logs([{"op_code": 2}])
    assert path.read_bytes() == whole + b'{"op_code":2}\n'
    with full_disk(), pytest.raises(RuntimeError, match=r"the trials cannot be stored: .*File too large"):
        with study.storing():
            journal.append_logs([{"op_code": "x" * 5000}])
    assert path.read_bytes() == whole + b'{"op_code":2}\n'


def test_a_home_is_found_wherever_a_path_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    schedule = Schedule.load(SHIPPED)
    assert schedule.save("~/s.json") == tmp_path / "me" / "s.json" and Schedule.load("~/s.json") == schedule
    assert toy.profile(4).save("~/p") == tmp_path / "me" / "p" and Profile.load("~/p").steps == 4
    assert run("export", "~/s.json", "--to", "table", "--out=~/t.json")[0] == 0
    assert run("lint", "~/s.json")[0] == run("report", "~/s.json")[0] == 0
    assert {path.name for path in (tmp_path / "me").iterdir()} >= {"s.json", "p", "t.json", "s.html"}
    with pytest.raises(ValueError, match="not a URL"):
        check_writable("file:///tmp/s.json")


def test_without_a_home_instant_schedules_are_made_and_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    from adaptcache.schedule import instant

    def unknown(_: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("ADAPTCACHE_HOME")
    monkeypatch.setattr(Path, "expanduser", unknown)
    with pytest.raises(FileNotFoundError, match="set HOME, or give the whole path"):
        Cache()
    times = tuple(1 - i / 12 for i in range(12))
    request = instant.InstantRequest(times, 1.2, instant.sampler_of(times, "euler"))
    assert instant.load_instant(request).from_theory


def test_a_file_of_the_cache_in_anothers_place_is_made_again(tmp_path: Path) -> None:
    cache, tensors = Cache(tmp_path), {"x": torch.ones(2)}
    for key, name in (("a", "one"), ("a", "two"), ("b", "one")):
        cache.save(key, name, tensors)
    (tmp_path / "a" / "two.safetensors").replace(tmp_path / "a" / "one.safetensors")
    (tmp_path / "b" / "one.safetensors").replace(tmp_path / "b" / "two.safetensors")
    os.mkfifo(tmp_path / "b" / "pipe.safetensors")
    assert [cache.load(*one) for one in (("a", "one"), ("b", "two"), ("b", "pipe"))] == [None] * 3
    here, there = (ProfileCheckpoint(cache, key) for key in "ab")
    here.save_profile(toy.profile(4))
    assert here.load_profile() is not None
    (tmp_path / "a" / "profile.safetensors").replace(tmp_path / "b" / "profile.safetensors")
    assert there.load_profile() is None is here.load_profile()


@pytest.mark.parametrize("columns", ["0", "9" * 12])
def test_a_width_that_is_none_hides_and_breaks_nothing(columns: str) -> None:
    environment = {**os.environ, "COLUMNS": columns, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "adaptcache", "show", SHIPPED]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and "of 28 calls" in done.stdout and "?" in done.stdout


def test_an_interrupt_while_it_is_imported_is_one_line() -> None:
    code = "import adaptcache.__main__ as a, builtins\nreal = builtins.__import__\n"
    code += "def stop(name, *rest):\n    if name == 'typer': raise KeyboardInterrupt\n    return real(name, *rest)\n"
    done = subprocess.run(
        [sys.executable, "-c", code + "builtins.__import__ = stop\na.main()"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (130, "stopped\n")


def test_long_names_are_cut_to_bytes_and_differ_still() -> None:
    long = ["emoji", "negative_prompt=" + "猫" * 200]
    names = {default_name(*long, word) for word in ("a", "b")}
    assert len(names) == 2 and max(len(name.encode()) for name in names) <= LONGEST


def test_a_polynomial_is_exported_without_a_count_of_calls() -> None:
    schedule = Schedule.of("teacache", model="flux", threshold=0.3)
    with pytest.raises(ScheduleError, match="leave the calls out"):
        export(schedule, "vllm-omni", calls=3)
    with pytest.raises(LookupError, match="no gear 1"):
        export(schedule, "vllm-omni", gear=1)


def test_a_storage_that_is_no_path_is_refused_by_its_name(run: Run) -> None:
    refused(run("tune", "--speed", "2", "--storage", "~nobody-here/x.log"), "~nobody-here/x.log")
