"""The scorer of the demo model: it knows what is drawn, and does not take what is spoiled."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from adaptcache.comparison.scorer import SCORER, Scorer, find_caption_score, load_scorer, named
from adaptcache.presets import resolve
from adaptcache.presets.prompts import read_prompts
from tests.calls import Call

PRESET = resolve("emoji-flux-32")
assert PRESET.folder
PATH = PRESET.folder.parent / SCORER
PROMPTS = read_prompts(PRESET.prompts)


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return load_scorer(PATH)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    pipe = PRESET.load_pipeline("cpu")
    pipe.set_progress_bar_config(disable=True)
    return np.asarray(Call(12, PRESET.call)(pipe, PROMPTS.held_out[:4], output_type="np"))


def blurred(images: np.ndarray) -> np.ndarray:
    """Averages each pixel with its neighbours, five by five."""
    shifts = [(y, x) for y in range(-2, 3) for x in range(-2, 3)]
    return np.mean([np.roll(images, shift, (1, 2)) for shift in shifts], axis=0)


def test_it_is_small_and_says_how_good_it_is() -> None:
    assert PATH.stat().st_size < 1_000_000
    with safe_open(str(PATH), framework="pt") as file:
        measured = json.loads(file.metadata()["about"])["held_out_accuracy"]
    assert measured["decoded"] > 0.95 and measured["blurred"] < 0.05 and measured["mixed"] < 0.05


def test_it_knows_all_prompts_of_the_demo_model(scorer: Scorer) -> None:
    assert scorer.knows(PROMPTS.held_out) and scorer.knows(PROMPTS.calibration)
    assert not scorer.knows(["a lighthouse in a storm"])
    assert named("red apple noto style green background") == ("red apple", "green")


def test_it_sees_what_the_model_draws_and_what_it_does_not(scorer: Scorer, images: np.ndarray) -> None:
    prompts = PROMPTS.held_out[:4]
    assert scorer.caption_score(prompts, images) >= 0.75
    assert scorer.caption_score(prompts[::-1], images) == 0
    assert scorer.caption_score(prompts, blurred(images)) == 0
    assert scorer.caption_score(prompts, (images + images[::-1]) / 2) == 0


def test_other_models_and_prompts_get_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_caption_score(PRESET.folder, PROMPTS.held_out)[1:] == ("share shown", "")
    shows, _, why = find_caption_score(PRESET.folder, ["a lighthouse in a storm"])
    assert shows is None and "does not know" in why
    monkeypatch.setattr("adaptcache.comparison.scorer.CLIP", "nobody/no-such-clip")
    shows, _, why = find_caption_score(tmp_path, ["a lighthouse in a storm"])
    assert shows is None and "nobody/no-such-clip is not on this machine" in why
    assert "no text" in find_caption_score(None, [{"prompt": "a cat"}])[2]
