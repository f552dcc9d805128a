"""The words of the command line: quick answers, old names, and what is said of files."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Run, refused, schedule_of, tiny_flux

from adaptcache.cli import VERBS, begin
from adaptcache.cli.files import find_model
from adaptcache.presets import names
from adaptcache.schedule.format import Evidence
from adaptcache.schedule.methods import METHODS

HEAVY = ("torch", "numpy", "diffusers", "transformers", "huggingface_hub", "scipy", "PIL", "matplotlib")
QUICK = ("--steps", "4", "--fit-on", "2", "--batch-size", "2")


@pytest.mark.parametrize(
    "words",
    [
        "",
        "--help",
        "--version",
        "shwo",
        "--dbug",
        "calibrate --help",
        "tune --spede 2",
        "show --jsn",
        "export",
    ],
)
def test_help_and_wrong_words_are_answered_without_what_takes_seconds(words: str) -> None:
    code = (
        "import sys\n"
        "from adaptcache.cli import main\n"
        "try:\n    main()\n"
        f"except SystemExit:\n    print(len(sys.modules), *[n for n in {HEAVY!r} if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, *words.split()], capture_output=True, text=True)
    count, *heavy = done.stdout.splitlines()[-1].split()
    assert heavy == [] and int(count) < 700


@pytest.mark.parametrize("verb", ["", *(verb.__name__ for verb in VERBS)])
def test_help_fits_a_narrow_screen(verb: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is cut off, no paragraph or example breaks in the middle, and brackets are no markup."""
    monkeypatch.setenv("COLUMNS", "80")
    text = run(*filter(None, [verb]), "--help")[1]
    lines = [line.strip() for line in text.splitlines()]
    assert "…" not in text and max(map(len, text.splitlines())) <= 80
    said = inspect.getdoc(next((one for one in VERBS if one.__name__ == verb), begin)) or ""
    for line in said.replace("\\[", "[").splitlines()[2:]:
        assert line.strip() in [*lines, "\b"]


def test_a_shell_completes_verbs_and_options(monkeypatch: pytest.MonkeyPatch) -> None:
    def completed(words: str) -> list[str]:
        asked = {"_ADAPTCACHE_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": "-1"}
        for name, value in asked.items():
            monkeypatch.setenv(name, value)
        code = "import sys; sys.argv = ['adaptcache']; from adaptcache.cli import main; main()"
        monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split()

    assert completed("adaptcache ge") == ["generate"]
    assert completed("adaptcache calibrate --ev") == ["--eval-on"]
    assert completed("adaptcache calibrate --model emoji-f") == ["emoji-flux", "emoji-flux-32"]
    assert completed("adaptcache calibrate --method mag") == ["magcache"]
    assert completed("adaptcache compare --prompts aud") == ["audio"]


def test_options_of_the_first_version_are_taken_but_not_shown(run: Run) -> None:
    shown = run("calibrate", "--help")[1]
    for old, new in [("--check-on", "--eval-on"), ("--teacher-steps", "--reference-steps")]:
        assert old not in shown and new in shown
    refused(run("calibrate", "--teacher-steps", "30"), "multiple of the 28 steps, got 30")
    refused(run("calibrate", "--at-most", "many"), "'--max-failure-rate'")
    refused(run("evaluate", "--check-on", "0", "-s", "x"), "'--eval-on'")


def test_what_is_not_default_is_in_the_name_and_what_is_replaced_is_said(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("a cat\na dog\na fox\n")
    words = ("calibrate", "--speed", "2", *QUICK, "--set", "height=32", "--prompts", "mine.txt")
    code, out, _ = run(*words, "--eval-on", "1")
    name = "schedules/emoji-flux-4-2x-height=32-mine-fit2-eval1.json"
    assert code == 0 and f"wrote {name}" in out and (tmp_path / name).is_file()
    assert f"replaced {name}" in run(*words, "--eval-on", "1")[1]
    code, out, _ = run(*words, "--eval-on", "0", "--seed", "3", "--json")
    assert json.loads(out)["schedule"] == "schedules/emoji-flux-4-2x-height=32-mine-fit2-eval0-seed3.json"
    assert len(list((tmp_path / "schedules").iterdir())) == 2

    assert "wrote schedules/" in run("report", name)[1] and "replaced schedules/" in run("report", name)[1]
    assert "wrote shared/" in run("push", name, "./shared")[1]
    assert "replaced shared/" in run("push", name, "./shared")[1]


def test_generate_prints_the_plan_and_the_evidence(run: Run, tmp_path: Path) -> None:
    schedule = schedule_of(tiny_flux(), [0, 3], steps=4)
    schedule.save(tmp_path / "s.json")
    words = ("generate", "-p", "pizza noto style blue background", "--steps", "4")
    code, out, err = run(*words, "-s", "s.json")
    assert code == 0 and "█··█  2 denoiser calls made, 2 skipped" in out and "wrote image.png" in out
    assert "warning: by-hand was fitted on" in err
    code, out, _ = run(*words, "-s", "s.json", "--json")
    assert json.loads(out).keys() == {"out", "calls", "seconds", "evidence"}
    code, out, _ = run(*words)
    assert code == 0 and "replaced image.png  (4 steps computed" in out


@pytest.mark.parametrize("columns", ["80", ""])
def test_names_are_never_cut(columns: str) -> None:
    import os

    environment = {**os.environ, "COLUMNS": columns} if columns else dict(os.environ)
    for verb, wanted in [("models", names()), ("methods", list(METHODS))]:
        done = subprocess.run(
            [sys.executable, "-m", "adaptcache", verb], capture_output=True, text=True, env=environment
        )
        firsts = {line.split()[0] for line in done.stdout.splitlines() if line.strip()}
        assert set(wanted) <= firsts and "…" not in done.stdout
        assert not columns or max(map(len, done.stdout.splitlines())) <= 80
        assert verb == "models" or "temporal-attention" in done.stdout


def test_identical_images_are_exact(run: Run, tmp_path: Path) -> None:
    seen = Evidence(prompts="x", n=2, calls=(8, 8), psnr={"mean": 100.0, "p05": 100.0}, speed=1.0)
    schedule_of(tiny_flux(), list(range(8))).model_copy(update={"evidence": seen}).save(tmp_path / "s.json")
    out = run("show", "s.json")[1]
    assert "exact on 2 held-out prompts (5th percentile exact)" in out and "100.0" not in out


def test_a_schedule_is_run_on_what_it_was_fitted_on_where_a_preset_knows_that() -> None:
    made = schedule_of(tiny_flux(), [0, 3])

    def on(checkpoint: str, given: str | None = None) -> str:
        denoiser = made.denoiser.model_copy(update={"checkpoint": checkpoint})
        return find_model(given, [made.model_copy(update={"denoiser": denoiser})]).name

    assert on("emoji-wan") == "emoji-wan" and on("black-forest-labs/FLUX.1-dev") == "flux"
    assert on("stranger/model") == on("") == find_model(None, []).name == "emoji-flux"  # nothing of strangers is run
    assert on("emoji-wan", "emoji-flux-32") == "emoji-flux-32"


def test_a_report_without_a_browser_says_so_in_one_line(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule_of(tiny_flux(), [0, 3], steps=4).save(tmp_path / "s.json")
    schedule_of(tiny_flux(), [0, 2], steps=4).save(tmp_path / "t.json")
    monkeypatch.setattr("webbrowser.open", lambda _: False)
    code, out, err = run("report", "s.json", "t.json", "--open")
    assert code == 0 and out == "wrote s-and-by-hand.html\n"
    assert err == f"no browser was found: open {tmp_path / 's-and-by-hand.html'} in one\n"
    for option, value in (("--model", "emoji-flux-32"), ("--device", "cpu")):
        refused(run("report", "s.json", option, value), f"{option} is for what --pictures asks for")
