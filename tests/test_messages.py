"""What goes wrong outside of adaptcache is said in one line that names the cure."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import time
import weakref
from pathlib import Path

import pytest
import torch
from conftest import Run, refused, schedule_of, tiny_flux

from adaptcache.cli import explain, stoppable
from adaptcache.cli.screen import Stderr, Stopped, complain
from adaptcache.errors import LESS_MEMORY
from adaptcache.schedule.schedule import Schedule

TEXT = "pizza noto style blue background"


def test_a_home_that_cannot_be_written_is_named_before_any_run(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ADAPTCACHE_HOME", str(tmp_path / "file" / "home"))
    monkeypatch.setattr("adaptcache.presets.Preset.load_pipeline", None)
    refused(run("calibrate"), "set ADAPTCACHE_HOME to a folder that can be written")


def test_a_schedule_that_an_editor_saved_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    plain, marked = schedule_of(tiny_flux(), [0, 3]).save(tmp_path / "plain.json"), tmp_path / "marked.json"
    marked.write_bytes(b"\xef\xbb\xbf" + plain.read_bytes())
    assert Schedule.load(marked) == Schedule.load(plain)


def test_a_prompt_with_bytes_that_are_no_text_is_named(run: Run) -> None:
    code, _, err = run("generate", "-p", "caf\udce9")
    assert code == 2 and err.count("\n") == 1 and "the prompt 'caf\\udce9' is not UTF-8 text" in err


def test_a_device_that_is_not_there_is_one_line(run: Run) -> None:
    refused(run("generate", "-p", TEXT, "--device", "cuda:99"), "no device 'cuda:99' here")


def test_a_front_that_is_not_there_is_none_of_calibrate(run: Run) -> None:
    refused(run("show", "mine.front.json"), "there is no mine.front.json; `adaptcache tune` writes fronts")
    refused(run("show", "none.json", "--pick", "10"), "there is no none.json; `adaptcache tune` writes fronts")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (KeyError("no such thing"), "error: no such thing"),
        (KeyError(), "error: KeyError"),
        (ValueError("two\n  lines"), "error: two lines"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. GPU 0 has"),
            f"error: CUDA out of memory. Tried to allocate 2 GiB; {LESS_MEMORY}",
        ),
        (MemoryError(), f"error: MemoryError; {LESS_MEMORY}"),
    ],
)  # fmt: skip
def test_an_error_is_one_line(error: Exception, line: str) -> None:
    assert explain(error) == line


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        (("calibrate",), "finished full runs are kept in {home}: the same command goes on from them"),
        (("calibrate", "--no-cache"), "nothing is kept"),
    ],
)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_what_is_stopped_says_what_is_kept(
    number: int, code: int, words: tuple[str, ...], kept: str, run: Run, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr("adaptcache.presets.Preset.load_pipeline", lambda *_, **__: None)
    monkeypatch.setattr("adaptcache.calibration.calibrate.calibrate", lambda *_, **__: os.kill(os.getpid(), number))
    handler = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    before = signal.signal(number, handler)  # background jobs of a shell ignore SIGINT
    try:
        assert run(*words) == (code, "", f"stopped; {kept.format(home=tmp_path / 'home')}\n")
        assert signal.getsignal(number) is handler
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("number", ["-4", "0"])
def test_steps_that_are_none_are_refused_by_their_option(number: str, run: Run) -> None:
    for verb in (("calibrate",), ("generate", "-p", TEXT), ("compare",)):
        refused(run(*verb, "--steps", number), "Invalid value for '--steps'")


def test_one_step_is_refused_by_what_is_wrong_with_it(run: Run) -> None:
    refused(run("calibrate", "--steps", "1"), "nothing can be skipped in 1 step; take 2 or more")


@pytest.mark.parametrize("words", [("--scheduler", "DDIMScheduler"), ("--lora", "style.safetensors@much")])
def test_what_only_the_pipeline_could_refuse_is_refused_before_its_weights_are_read(
    words: tuple[str, ...], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adaptcache.presets.preset.load", None)
    refused(run("calibrate", *words), "cannot run a flow-matching model" if "DDIM" in words[1] else "SOURCE@SCALE")


def test_a_scheduler_that_is_none_has_those_that_do_run_named(run: Run) -> None:
    code, _, err = run("calibrate", "--scheduler", "UniPCMultistep")
    assert code == 2 and "did you mean UniPCMultistepScheduler?" in err
    known = err.split("there are ")[1].strip().split(", ")
    assert {"FlowMatchEulerDiscreteScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"} <= set(known)
    assert "DDIMScheduler" not in known  # cannot run a flow-matching model


def test_what_a_strangers_file_says_moves_no_cursor(run: Run, tmp_path: Path) -> None:
    data = json.loads(schedule_of(tiny_flux(), [0, 3]).save(tmp_path / "s.json").read_text())
    for changes in ({"denoiser": {"class": "A\x1b[2JB"}}, {"made": {"\x9b2J": "x\x07"}}, {"x\x1b[2J": 1}):
        (tmp_path / "s.json").write_text(json.dumps(data | changes))
        _, out, err = run("show", "s.json")
        assert "\N{REPLACEMENT CHARACTER}" in out + err and not set("\x1b\x9b\x07") & set(out + err)


def test_a_full_disk_below_the_log_does_not_stop_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys, "stderr", Stderr(Full()))
    complain("12 prompts to fit on")


def test_with_stderr_closed_nothing_of_it_is_said_on_stdout(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    assert run("shwo") == (2, "", "")


def test_ctrl_c_within_a_finalizer_is_not_lost() -> None:
    class Thing:
        pass

    thing = Thing()
    ref = weakref.ref(thing, lambda _: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Stopped), stoppable():
        del thing
        for _ in range(500):
            time.sleep(0.01)
    assert ref() is None
