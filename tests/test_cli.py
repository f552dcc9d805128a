"""The command line with the shipped model: results on stdout, one line on stderr, exit code 2."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from conftest import Run, refused, schedule_of, tiny_flux
from PIL import Image

from adaptcache.cli import main, quiet
from adaptcache.files import check_writable, write_atomically
from adaptcache.schedule.schedule import Schedule

SHIPPED = str(Path(__file__).parents[1] / "schedules" / "emoji-flux-28-4x.json")
QUICK = ("--steps", "4", "--fit-on", "2", "--eval-on", "1", "--batch-size", "2")


@pytest.mark.parametrize(("verb", "default"), [("tune", "[default: 40"), ("calibrate", "[default: 2.8]")])
def test_help_says_what_is_taken_where_nothing_is_said(verb: str, default: str, run: Run) -> None:
    assert default in re.sub(r"[│\s]+", " ", run(verb, "--help")[1])


def test_calibrate_show_and_generate_work_together(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("calibrate", "--speed", "2", *QUICK, "--out", "new/s.json", "--json")
    assert code == 0
    printed = json.loads(out)
    schedule = Schedule.load(tmp_path / "new" / "s.json")
    assert printed["schedule"] == "new/s.json" and printed["evidence"]["calls"] == [2, 4]
    assert schedule.evidence and schedule.evidence.psnr["mean"] == pytest.approx(printed["evidence"]["psnr"]["mean"])

    code, out, _ = run("show", "new/s.json")
    assert code == 0 and "FluxTransformer2DModel" in out and "2 of 4 calls" in out

    prompt = ("--prompt", "pizza noto style blue background", "--steps", "4", "--schedule", "new/s.json")
    code, out, _ = run("generate", *prompt, "--json")
    assert code == 0 and json.loads(out)["calls"] == 2
    assert Image.open(tmp_path / "image.png").size == (64, 64)

    code, out, _ = run("generate", *prompt, "--compare", "--out", "both.png", "--json")
    assert code == 0 and json.loads(out)["psnr"] > 10 and "plain_steps_psnr" in json.loads(out)
    assert Image.open(tmp_path / "both.png").width > 5 * 160  # full run, two steps, ours, and both differences


def test_models_lists_the_presets(run: Run) -> None:
    code, out, _ = run("models", "--json")
    assert code == 0
    assert {"emoji-flux-32", "flux", "flux-schnell"} <= {preset["name"] for preset in json.loads(out)}


@pytest.mark.parametrize("verb", ["", "calibrate", "generate", "evaluate", "show", "models", "demo"])
def test_help_shows_an_example(run: Run, verb: str) -> None:
    code, out, _ = run(*filter(None, [verb]), "--help")
    assert code == 0 and "adaptcache " + (verb or "demo") in out


def test_verbs_that_load_no_pipeline_need_no_text_encoders(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)  # as if it were not installed
    assert run("models")[0] == 0


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("show", "none.json"), "cannot read none.json"),
        (("shwo",), "No such command 'shwo'"),
        (("show", "--jsn", "s.json"), "--jsn"),
        (("calibrate", "--steps", "many"), "--steps"),
        (("generate",), "Missing option"),
        (("calibrate", "--budget", "0"), "budget must be in (0, 1], got 0"),
        (("calibrate", "--budget", "2"), "budget must be in (0, 1], got 2"),
        (("calibrate", "--speed", "0.5"), "speed must be in [1, 28]"),
        (("calibrate", "--steps", "0"), "'--steps': Input should be greater than or equal to 1. Try"),
        (("generate", "-p", "pizza", "--steps", "-4"), "'--steps'"),
        (("calibrate", "--steps", "1", "--speed", "1"), "nothing can be skipped in 1 step; take 2 or more"),
        (("calibrate", "--prompts", "none.txt"), "no prompt file none.txt"),
        (("calibrate", "--prompts", "empty.txt"), "empty.txt has no prompts"),
        (("calibrate", "--model", "emojy-flux"), "Did you mean emoji-flux"),
        (
            ("calibrate", "--model", "black-forest-labs/FLUX.1-dev", "--device", "cpu"),
            "black-forest-labs/FLUX.1-dev",
        ),
        (("calibrate", "--out", "file/s.json"), "is not a folder"),
        (("calibrate", "--scheduler", "DPM"), "no scheduler 'DPM'"),
        (("compare", "--set", "true_cfg_scale"), "NAME=VALUE"),
        (("compare", "--methods", "TeaCash"), "no method 'TeaCash'"),
        (("calibrate", "--teacher-steps", "30"), "multiple of the 28 steps, got 30"),
        (("generate", "-p", "pizza", "-s", "file"), "is not JSON"),
        (("generate", "-p", "pizza", "--compare"), "--compare needs a --schedule"),
        (("generate", "-p", "pizza", "--out", "image.xyz"), "image.xyz"),
        (("calibrate", "--device", ""), "--device is empty"),
        (("show", ""), "schedule is empty"),
        (("calibrate", "--out", "/dev/null"), "it is no regular file, and would be replaced"),
        (("calibrate", "--out", "/proc/s.json"), "cannot write /proc/s.json"),
        (("calibrate", "--effort", "inf"), "'--effort': Input should be less"),
        (("calibrate", "--confidence", "0.9"), "confidence 0.9 goes with a target in decibels"),
        (("tune", "--max-failure-rate", "0.1", "--speed", "2"), "max_failure_rate 0.1 goes with a target"),
        (("calibrate", "--reference-steps", "0"), "'--reference-steps'"),
        (("calibrate", "--times", "never"), "times must be 'grid' or 'own', got 'never'"),
        (("calibrate", "--seed", "9" * 22, "--dry-run"), "seed must be from -2**62 to 2**62"),
        (("show", "x" * 4000), "xxx ... xxx"),
        (("generate", "-p", "pizza", "--out", "image.psd"), "cannot write an image as 'image.psd'"),  # is only read
        (("generate", "-p", "pizza", "--steps", "2", "--set", "height=tall"), "was called with height='tall', width"),
        (("compare", "--methods", ","), "no method ''"),
        (("tune", "--speed", "2", "--out", "t.json", "--front", "./t.json"), "need a file each, got t.json, t.json"),
        (("export", SHIPPED, "--to", "diffusers", "--model", "flux"), "--model is for what --eval-on asks for"),
        (("report", SHIPPED, "--eval-on", "16"), "--eval-on is for what --pictures asks for"),
        (("evaluate", "-s", SHIPPED, "--pictures", "6"), "--pictures is for what --out asks for"),
        (("compare", "--refine", "1"), "--refine 1 is the full run itself"),
        (("calibrate", "--method", "magcache", "--effort", "3"), "give magcache, or effort, not both"),
        (("calibrate", "--method", "magcache", "--no-branches"), "give magcache, or fit (branches), not both"),
        (
            ("calibrate", "--gears", "0.5,0.25", "--min-psnr", "9", "--effort", "3"),
            "leave reference_steps and effort out",
        ),
        (("calibrate", "--set", "height=8", "--set", "height=9"), "--set says 'height=8' and 'height=9'"),
        (("show", "~nobody-here/s.json"), "its home folder is not known"),
        (("export", SHIPPED, "--to", "diffusers", "--eval-on", "1", "--model", "fluks"), "no model 'fluks'"),
        (("export", SHIPPED, "--to", "diffusers", "--steps", "0"), "'--steps'"),
        (("push", SHIPPED, "./mine", "--public", "--message", "x"), "the hub: --private/--public, --message"),
        (("report", SHIPPED, "--pictures", "--model", "fluks", "--comparison", "none"), "none is no comparison"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_input_is_one_line_and_nothing_written(
    run: Run, words: tuple[str, ...], complaint: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("not a schedule")
    (tmp_path / "empty.txt").write_text("# nothing yet\n")
    before = sorted(tmp_path.rglob("*"))
    refused(run(*words), complaint)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_fault_of_ours_is_one_line_too(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adaptcache.presets.names", lambda: 1 / 0)
    refused(run("models"), "error: ZeroDivisionError: division by zero; perhaps a fault of adaptcache: --debug shows")


def test_a_link_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "v1").mkdir()
    link = tmp_path / "current.json"
    link.symlink_to("v1/s.json")
    assert write_atomically(check_writable(link), b"new") == link
    assert link.is_symlink() and (tmp_path / "v1" / "s.json").read_bytes() == b"new"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["current.json", "s.json", "v1"]


def test_closed_streams_are_no_fault(tmp_path: Path) -> None:
    command = f"exec {sys.executable} -m adaptcache models"
    closed = subprocess.run(f"{command} >&-", shell=True, capture_output=True, text=True)
    cut = subprocess.run(f"{command} | head -1", shell=True, capture_output=True, text=True)
    assert (closed.returncode, closed.stderr, cut.stderr) == (0, "", "") and len(cut.stdout.splitlines()) == 1


def test_a_schedule_of_the_future_or_of_another_model_is_refused(run: Run, tmp_path: Path) -> None:
    schedule = schedule_of(tiny_flux(), [0, 3])
    data = json.loads(schedule.save(tmp_path / "s.json").read_text())
    (tmp_path / "future.json").write_text(json.dumps(data | {"format": 7}))
    (tmp_path / "wan.json").write_text(json.dumps(data | {"denoiser": {"class": "WanTransformer3DModel"}}))
    refused(run("show", "future.json"), "has format 7")
    refused(run("generate", "-p", "pizza", "-s", "wan.json"), "fitted on a WanTransformer3DModel")


def test_other_weights_warn_in_one_line(tmp_path: Path) -> None:
    schedule_of(tiny_flux(), [0, 3], steps=4).save(tmp_path / "s.json")
    words = ["generate", "-p", "pizza", "-s", "s.json", "--steps", "4"]
    done = subprocess.run(
        [sys.executable, "-m", "adaptcache", *words], cwd=tmp_path, capture_output=True, text=True
    )  # fmt: skip
    warned = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    assert done.returncode == 0 and len(warned) == 1 and "fitted on" in warned[0]


def test_without_transformers_the_command_line_still_speaks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setattr("warnings.showwarning", None)
    quiet()
    warnings.showwarning("look out", UserWarning, "here.py", 1)
    assert capsys.readouterr().err == "warning: look out\n"


def test_what_no_user_can_change_is_not_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("warnings.showwarning", None)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        quiet()
        for module in ("torchsde._brownian.brownian_interval", "elsewhere"):
            warnings.warn_explicit("Should have tb<=t1", UserWarning, "here.py", 1, module=module)
    assert capsys.readouterr().err == "warning: Should have tb<=t1\n"
    assert os.environ["HF_HUB_VERBOSITY"] == "error"  # without a network it says each of five tries


def test_one_of_several_processes_speaks_and_most_verbs_are_for_one(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    refused(run("compare"), "compare runs in one process; start it without torchrun")
    monkeypatch.setenv("RANK", "1")
    assert run("compare") == (2, "", "") == run("calibrate", "--stepz", "3")


def test_debug_shows_the_traceback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["adaptcache", "--debug", "show", "none.json"])
    with pytest.raises(ValueError, match="cannot read"):
        main()
