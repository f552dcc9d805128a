"""`adaptcache evaluate`: a schedule from elsewhere on one's own model, with the truth about both."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import Run, refused
from PIL import Image

from adaptcache.presets import resolve
from adaptcache.schedule.schedule import Schedule

SHIPPED = str(Path(__file__).parent.parent / "schedules" / "emoji-flux-32-28-4x.json")
SMALL = ("--set", "height=32", "--set", "width=32", "--set", "guidance_scale=1.0")
QUICK = ("--eval-on", "1", "--steps", "8")


@pytest.fixture(scope="module")
def fine_tune(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model with other weights, saved to a folder."""
    folder = tmp_path_factory.mktemp("models") / "fine-tune"
    pipe = resolve("emoji-flux-32").load_pipeline("cpu")
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in pipe.transformer.parameters():
            weight.add_(0.02 * weight.std() * torch.randn(weight.shape, generator=noise))
    pipe.save_pretrained(folder)
    (folder / "mine.txt").write_text("[calibration]\na cat\n[held-out]\na dog\na fox\n")
    return folder


def test_a_schedule_is_scored_next_to_plain_steps_and_drawn(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("evaluate", "-s", SHIPPED, *QUICK, "--out", "scores.png")
    assert code == 0
    assert "fitted on 28 steps, this run has 8: planned anew" in out
    assert "1 held-out prompt of emoji-32, 8 steps" in out and "2 steps without caching" in out
    assert "dB where it was fitted" in out and "wrote scores.png" in out
    assert Image.open(tmp_path / "scores.png").width > 4 * 160


def test_on_a_fine_tune_it_says_what_differs_and_prints_json(
    run: Run,
    fine_tune: Path,
    tmp_path: Path,
) -> None:
    Schedule.load(SHIPPED).save_pretrained(tmp_path / "theirs")
    words = ("--model", str(fine_tune), "--prompts", str(fine_tune / "mine.txt"), "--json", *SMALL)
    code, out, err = run("evaluate", *words, "-s", SHIPPED, "-s", str(tmp_path / "theirs"), *QUICK)
    assert code == 0 and "warning" not in err
    said = json.loads(out)
    one, same = said["rows"]
    assert (said["steps"], said["held_out"]) == (8, 1) and one["here"]["psnr"] == same["here"]["psnr"]
    grades = {found["what"]: found["grade"] for found in one["differences"]}
    assert grades["weights"] == "warned" and grades["steps"] == "re-planned"
    assert one["here"]["calls"] == one["fewer_steps"]["calls"] == 2
    assert one["fitted"] == Schedule.load(SHIPPED).evidence.psnr  # type: ignore[union-attr]
    assert one["here"]["psnr"]["mean"] > 10


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("-s", "nowhere.json"), "cannot read nowhere.json"),
        (("-s", "no such thing"), "neither a folder, a file nor a repository"),
        (("-s", SHIPPED, "--model", "fluks"), "no model 'fluks'"),
        (("-s", SHIPPED, "--prompts", "none.txt"), "no prompt file none.txt"),
        (("-s", SHIPPED, "--out", "scores.gif.txt"), "scores.gif.txt"),
        (("-s", SHIPPED, "--set", "height"), "--set takes NAME=VALUE"),
        (("-s", SHIPPED, "--set", "prompt=x"), "sets prompt itself"),
        ((), "--schedule"),
    ],
)
def test_bad_words_are_one_line(run: Run, words: tuple[str, ...], complaint: str) -> None:
    refused(run("evaluate", *words), complaint)


def test_a_schedule_of_another_denoiser_is_refused_before_anything_runs(
    run: Run,
    tmp_path: Path,
) -> None:
    shipped = Schedule.load(SHIPPED)
    denoiser = shipped.denoiser.model_copy(update={"class_name": "WanTransformer3DModel"})
    shipped.model_copy(update={"denoiser": denoiser}).save(tmp_path / "wan.json")
    refused(run("evaluate", "-s", "wan.json", *QUICK), "fitted on a WanTransformer3DModel")
