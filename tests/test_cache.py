"""What full runs gave, kept by content: found by every verb, and never where anything differs."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import adaptcache
from adaptcache.cache import Cache, feed
from tests.pipelines.table import counted
from tests.toy import PROMPTS, Pipe

HELD_OUT = ["one", "three", "five more", "seven and a bit", "nine at most and no more"]
HOW = {"num_inference_steps": 12, "eval_prompts": HELD_OUT, "batch_size": 2}  # more held out than a batch has


class Painter(Pipe):
    """Returns images where they are asked for."""

    def __call__(self, prompt, num_inference_steps=12, generator=None, output_type="latent",
                 return_dict=False):  # fmt: skip
        (x,) = super().__call__(prompt, num_inference_steps, generator)
        return (x if output_type == "latent" else np.clip(x.numpy()[..., None] / 4 + 0.5, 0, 1),)


def calibrated(cache: Cache, pipe: Any = None) -> adaptcache.Schedule:
    return adaptcache.calibrate(pipe or Painter(), PROMPTS, speed=3, cache_dir=cache, **HOW)


def geared(cache: Cache, pipe: Any = None) -> adaptcache.Schedule:
    options = {"gears": (0.25, 0.5), "min_psnr": 30, "cache_dir": cache}
    return adaptcache.calibrate(pipe or Painter(), PROMPTS, **options, **HOW)


VERBS = {"calibrate": calibrated, "gears": geared}


@pytest.mark.parametrize("order", ["calibrate, gears", "gears, calibrate"])
def test_a_second_verb_on_the_same_cache_gives_what_it_gives_alone(tmp_path: Path, order: str) -> None:
    first, second = (VERBS[name] for name in order.split(", "))
    first(Cache(tmp_path / "shared"))
    assert second(Cache(tmp_path / "shared")) == second(Cache(tmp_path / "own"))


def test_a_second_verb_runs_nothing_in_full_again(tmp_path: Path) -> None:
    pipe = Painter()
    with counted(pipe) as cold:
        geared(Cache(tmp_path / "own"), pipe)
    calibrated(Cache(tmp_path / "shared"))
    with counted(pipe) as warm:
        geared(Cache(tmp_path / "shared"), pipe)
    batches, steps = 2 + 3, 12  # of calibration and held-out prompts
    perturbed = sum(1 + steps - 1 - at for at in range(1, steps))  # the first step, and those after the forecast
    assert len(cold) - len(warm) == batches * steps + perturbed


def test_another_batch_size_or_seed_is_another_run(tmp_path: Path) -> None:
    made = []
    for options in ({}, {"batch_size": 4}, {"seed": 1}):
        pipe = Painter()
        with counted(pipe) as calls:
            options = {**HOW, **options}
            adaptcache.calibrate(pipe, PROMPTS, speed=3, cache_dir=tmp_path, **options)
        made.append(len(calls))
    with counted(Painter()) as calls:
        pass
    assert made[2] == made[0] and made[1] > 100


def test_a_folder_that_cannot_be_written_is_named_before_any_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ADAPTCACHE_HOME", str(tmp_path / "file" / "home"))
    for given in (Cache(), tmp_path / "file" / "other"):
        pipe = Pipe()
        with counted(pipe) as calls, pytest.raises(OSError, match="ADAPTCACHE_HOME"):
            adaptcache.calibrate(pipe, PROMPTS, 8, budget=0.5, cache_dir=given)
        assert not calls


# Digests


def digest(value: Any) -> str:
    found = hashlib.sha256()
    feed(found, value)
    return found.hexdigest()


def scaled(factor: float) -> Any:
    return lambda x: x * factor


def palette(*colours: int) -> Image.Image:
    image = Image.new("P", (2, 2))
    image.putpalette(colours)
    return image


class Noted:
    def __init__(self, value: Any) -> None:
        self.value = value

    def __call__(self) -> Any:
        return self.value


DIFFERENT: dict[str, list[Any]] = {
    "kinds": [1, 1.0, "1", b"1", True, None, [1], (1,), {1}, {1: 1}, 1j, np.array([1]), torch.tensor([1])],
    "texts that run together": [["ab", "c"], ["a", "bc"], ["abc"], [["ab"], "c"]],
    "whole numbers beyond float32": [torch.tensor([2**24]), torch.tensor([2**24 + 1])],
    "doubles": [torch.tensor([1.0], dtype=torch.float64), torch.tensor([1.0 + 1e-12], dtype=torch.float64)],
    "dtypes of the same bits": [np.zeros(2, "f4"), np.zeros(2, "i4"), torch.zeros(2), torch.zeros(2).int()],
    "shapes": [torch.zeros(2, 3), torch.zeros(3, 2), torch.zeros(6)],
    "palettes": [palette(0, 0, 0), palette(255, 0, 0)],
    "what functions hold": [scaled(1.0), scaled(2.0)],
    "what functions do": [lambda x: x + 1, lambda x: x - 1, lambda x: x + 2],
    "parts of functions": [functools.partial(pow, 2), functools.partial(pow, 3)],
    "objects": [SimpleNamespace(a=1), SimpleNamespace(a=2), SimpleNamespace(b=1)],
    "objects that are called": [Noted(1), Noted(2)],
    "their methods": [Noted(1).__call__, Noted(2).__call__],
    "modules": [torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)],
    "objects in arrays": [np.array([Noted(1)], dtype=object), np.array([Noted(2)], dtype=object)],
}  # fmt: skip


@pytest.mark.parametrize("name", DIFFERENT)
def test_what_differs_has_another_digest(name: str) -> None:
    values = DIFFERENT[name]
    assert len({digest(value) for value in values}) == len(values)


ALIKE: dict[str, Any] = {
    "a function": lambda: scaled(2.0),
    "an object": lambda: Noted([1, {"a": torch.ones(2)}]),
    "its method": lambda: Noted(3).__call__,
    "a part of a function": lambda: functools.partial(scaled, 3),
    "an array of objects": lambda: np.array([Noted(1), None], dtype=object),
    "a palette": lambda: palette(1, 2, 3),
    "a mapping in another order": iter([{"a": 1, "b": 2}, {"b": 2, "a": 1}]).__next__,
    "a set": lambda: {"a", "b", "c"},
    "a view": iter([torch.arange(6).view(2, 3).T, torch.arange(6).view(2, 3).T.contiguous()]).__next__,
    "a class": lambda: Noted,
    "a bfloat16": lambda: torch.ones(2, dtype=torch.bfloat16),
}


@pytest.mark.parametrize("name", ALIKE)
def test_what_is_alike_has_the_same_digest_wherever_it_lies(name: str) -> None:
    first, second = ALIKE[name](), ALIKE[name]()
    assert digest(first) == digest(second)


def test_what_holds_itself_comes_to_an_end() -> None:
    first, second = Noted(1), Noted(1)
    first.value, second.value = [first, 1], [second, 1]
    assert digest(first) == digest(second)


def test_what_has_no_content_is_refused() -> None:
    with pytest.raises(TypeError, match="no content that can be compared"):
        digest([object()])
