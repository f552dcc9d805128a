"""Reports in a real browser: nothing on the console, images load, sliders move, light, dark and print."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser, missing
from conftest import CALL, embedded, tiny_flux
from PIL import Image

from adaptcache.cli.compare import write_folder
from adaptcache.comparison.compare import compare
from adaptcache.engines.diffusers.engine import sampling_rate
from adaptcache.presets import resolve
from adaptcache.presets.prompts import read_prompts
from adaptcache.report import write_report

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(missing()), reason=missing() or "there is one")]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with everything, of a real comparison of a tiny model."""
    folder = tmp_path_factory.mktemp("compared")
    result = compare(
        tiny_flux(), embedded(2), embedded(2, seed=5), [0.5, 0.25], CALL.steps, pipe_kwargs=CALL.arguments,
        methods=["adaptcache", "fewer steps", "L2P"], batch_size=2, sweep_on=1, refine=2,
    )  # fmt: skip
    write_folder(folder, result, {**result.data(), "finer": 2, "measure": ""}, ["a <b>", "b"], "tiny")
    return write_report(result.schedules[0.5], folder / "report.html", folder)


@pytest.fixture(scope="module")
def browser(page: Path) -> Iterator[Browser]:
    with Browser() as driven:
        driven.open(page)
        yield driven


def background(browser: Browser) -> tuple[int, int, int]:
    image = Image.open(io.BytesIO(browser.picture())).convert("RGB")
    red, green, blue = image.getpixel((2, 2))  # type: ignore[misc]
    return red, green, blue


def test_the_console_stays_silent_and_all_images_load(browser: Browser) -> None:
    assert browser.complaints() == []
    loaded = browser.run("return [...document.images].map(i => i.complete && i.naturalWidth > 0)")
    assert len(loaded) > 8 and all(loaded)


def test_nothing_is_fetched(browser: Browser) -> None:
    fetched = browser.run("return performance.getEntriesByType('resource').map(e => e.name)")
    assert [name for name in fetched if not name.startswith("data:")] == []


def test_the_slider_moves_the_cut(browser: Browser) -> None:
    def cut() -> str:
        return browser.run("return getComputedStyle(document.querySelector('.pair img.top')).clipPath")

    before = cut()
    browser.press(".pair input", "\ue014" * 5)  # arrow right
    assert "50%" in before and "55%" in cut()
    assert browser.complaints() == []


def test_it_is_light_or_dark_as_people_have_it_and_light_on_paper(browser: Browser) -> None:
    assert min(background(browser)) > 240
    browser.media(scheme="dark")
    assert max(background(browser)) < 40
    browser.media("print", "dark")
    assert min(background(browser)) > 240
    assert browser.run("return getComputedStyle(document.querySelector('.pair input')).display") == "none"
    assert browser.printed().startswith(b"%PDF")
    browser.media()


def test_nothing_sticks_out_on_a_narrow_screen(page: Path) -> None:
    with Browser(width=500) as narrow:
        narrow.open(page)
        assert narrow.run("return document.documentElement.scrollWidth <= innerWidth")


def test_sounds_are_seen_and_played(tmp_path: Path) -> None:
    preset, known = resolve("tones"), read_prompts("tones")
    pipe = preset.load_pipeline("cpu")
    result = compare(
        pipe, known.calibration[:2], known.held_out[:2], [0.5], 6, pipe_kwargs=preset.call,
        methods=["adaptcache", "fewer steps"], batch_size=2, sweep_on=1, refine=2,
    )  # fmt: skip
    data = {**result.data(), "finer": 2, "measure": ""}
    write_folder(tmp_path, result, data, known.held_out[:2], "tones", sampling_rate(pipe))
    with Browser() as driven:
        driven.open(write_report(result.schedules[0.5], tmp_path / "report.html", tmp_path))
        assert driven.complaints() == []
        assert driven.run("return document.querySelectorAll('audio').length") == 6  # full, ours, fewer; twice
        driven.run("document.querySelectorAll('audio').forEach(one => one.load())")
        for _ in range(50):
            lengths = driven.run("return [...document.querySelectorAll('audio')].map(one => one.duration)")
            if all(lengths):
                break
            time.sleep(0.1)
        assert lengths == [pytest.approx(1.0, abs=0.01)] * 6
        pictures = driven.run("return [...document.images].map(i => i.complete && i.naturalWidth > 0)")
        assert all(pictures)
        (tmp_path / "sounds.png").write_bytes(driven.picture())
