"""Reports are one file that asks for nothing, and say what the schedule says."""

from __future__ import annotations

import base64
import io
import itertools
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import schedule_of, tiny_flux
from PIL import Image

from adaptcache.errors import ScheduleError
from adaptcache.evaluation.evaluate import Row
from adaptcache.evaluation.generate import Generation
from adaptcache.evaluation.metrics import psnr
from adaptcache.report import Measured, build_report, write_report
from adaptcache.report.charts import (
    best_lines,
    build_curve,
    build_front,
    build_pareto,
    to_svg,
    write_png,
)
from adaptcache.report.page import output_changes, output_distances, pareto_lines, verdict
from adaptcache.schedule.format import Evidence, Kernel
from adaptcache.schedule.schedule import Schedule

VOID = {"meta", "img", "input", "br", "link"}
TIPS = re.compile(r"<title>(.*?)</title>")


class Page(HTMLParser):
    """Reads a page, and insists that every element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def all(self, tag: str, **wanted: str) -> list[dict[str, str | None]]:
        return [a for t, a in self.elements if t == tag and all(a.get(k) == v for k, v in wanted.items())]


@pytest.fixture(scope="module")
def schedule() -> Schedule:
    made = schedule_of(tiny_flux(), [0, 1, 3, 6])
    n = len(made.grid.times)
    gram = np.eye(n) * 0.1 + 0.9
    kernel = Kernel(times=made.grid.times, gram=tuple(map(tuple, gram)), sensitivity=tuple(np.geomspace(1, 1e-3, n)))
    return made.model_copy(update={"kernel": kernel, "made": {"note": "<script>alert(1)</script>"}})


@pytest.fixture
def comparison(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (4, 4), "red").save(tmp_path / name)
    line = {"method": "adaptcache", "budget": 0.5, "psnr": {"mean": 41.25, "p05": 39.0}, "calls": 4.0,
            "speed": 1.9, "note": "", "each": [41.25, 39.5], "exact": {"mean": 38.0, "p05": 36.0},
            "shown": 1.0, "memory": 7168}  # fmt: skip
    other = {"method": "DBCache", "budget": 0.5, "psnr": None, "note": "not installed"}
    data = {"lines": [line, other], "prompts": ["a cat", "a dog"], "held_out": 2, "swept": 1, "finer": 10,
            "measure": "share shown", "rows": [1],
            "images": {"full run": ["a.png"], "adaptcache 0.5": ["b.png"]}}  # fmt: skip
    (tmp_path / "comparison.json").write_text(json.dumps(data))
    return tmp_path


def test_the_strip_shows_which_steps_are_computed(schedule: Schedule) -> None:
    cells = [a for _, a in Page(build_report(schedule)).elements if (a.get("title") or "").startswith("step ")]
    assert [i for i, cell in enumerate(cells) if cell["class"] == "on"] == [0, 1, 3, 6]
    assert len(cells) == len(schedule.grid.times)


def test_nothing_is_asked_for_from_elsewhere(schedule: Schedule, comparison: Path) -> None:
    text = build_report(schedule, comparison)
    sources = [a[k] for _, a in Page(text).elements for k in ("src", "href") if a.get(k)]
    assert sources and all(str(source).startswith("data:image/png;base64,") for source in sources)
    assert "http://" not in text and "https://" not in text and "@import" not in text


def test_what_a_schedule_says_is_text_and_never_code(schedule: Schedule) -> None:
    page = Page(build_report(schedule))
    assert not page.all("script")
    assert "&lt;script&gt;alert(1)" in build_report(schedule)


def test_curves_have_a_point_a_step_that_says_its_value(schedule: Schedule) -> None:
    tips = TIPS.findall(build_report(schedule))[1:]  # the first is the page's own
    n, computed = len(schedule.grid.times), {0, 1, 3, 6}
    how = ["computed" if i in computed else "forecast" for i in range(n)]
    apart = f"{0.2**0.5:.3g}"  # of all outputs
    assert tips[: n - 1] == [f"step {i}: {apart}, {how[i]}" for i in range(1, n)]
    values = np.geomspace(1, 1e-3, n)
    assert tips[n - 1 :] == [f"step {i}: {values[i]:.3g}, {how[i]}" for i in range(n)]


def test_charts_are_labelled_have_the_colours_of_the_page_and_no_formulas(schedule: Schedule) -> None:
    text = build_report(schedule)
    labels = [a["aria-label"] for a in Page(text).all("svg")]
    assert labels == ["change of the output by step", "sensitivity by step", "kernel heat map"]
    assert "stroke: currentColor" in text and "fill: var(--on)" in text and "var(--paper)" in text
    assert "#000000" not in text and "mathdefault" not in text
    for values, shown in (([0.02, 0.2], "0.05"), ([3e-9, 2.0], "1e\u221206"), ([1.0, 1.0], "1")):
        svg = to_svg(build_curve(values, []), "a curve")
        assert "mathdefault" not in svg and f">{shown}</text>" in svg


def test_the_change_of_an_output_is_its_distance_from_the_one_before(schedule: Schedule) -> None:
    assert schedule.kernel
    n = len(schedule.grid.times)
    assert output_changes(schedule.kernel) == pytest.approx([0.2**0.5] * (n - 1))
    assert output_distances(schedule.kernel) == pytest.approx(0.1 * (1 - np.eye(n)))


def test_a_comparison_brings_its_numbers_and_a_slider_for_each_image(schedule: Schedule, comparison: Path) -> None:
    text = build_report(schedule, comparison)
    assert "41.2" in text and "not installed" in text and "10 times the steps" in text
    assert "<h3>a dog</h3>" in text and "<h3>a cat</h3>" not in text  # the images kept are of the second
    page = Page(text)
    assert len(page.all("input", type="range")) == 1 and page.all("img", alt="adaptcache 0.5")


def test_images_outside_of_the_folder_are_refused(schedule: Schedule, comparison: Path) -> None:
    path = comparison / "comparison.json"
    path.write_text(path.read_text().replace("b.png", "../b.png"))
    with pytest.raises(ScheduleError, match="outside"):
        build_report(schedule, comparison)


def test_a_schedule_without_kernel_or_evidence_has_a_report_too(tmp_path: Path) -> None:
    path = write_report(schedule_of(tiny_flux(), [0, 2]), tmp_path / "r.html")
    assert "Not measured on held-out prompts" in path.read_text()


def test_another_folder_is_no_comparison(schedule: Schedule, tmp_path: Path) -> None:
    with pytest.raises(ScheduleError, match="no comparison"):
        build_report(schedule, tmp_path)


def test_the_worst_prompts_come_first(schedule: Schedule, comparison: Path) -> None:
    text = build_report(schedule, comparison)
    bars = text[text.index('class="bars"') :]
    assert bars.index("a dog") < bars.index("39.5") < bars.index("a cat") < bars.index("41.2")


def test_the_plot_has_a_line_a_method_the_best_first_and_ours_on_top(tmp_path: Path) -> None:
    def line(method: str, calls: float, decibels: float) -> dict[str, object]:
        return {"method": method, "calls": calls, "psnr": {"mean": decibels}}

    lines = [line("full run", 8, 100), line("AB2", 2, 30), line("AB2", 4, 40), line("adaptcache", 4, 60)]
    found = pareto_lines([*lines, {"method": "PAB", "calls": None, "psnr": None}], "psnr")
    assert found == {"AB2": [(2, 30), (4, 40)], "adaptcache": [(4, 60)]}
    assert pareto_lines(lines, "exact") == {}
    figure = build_pareto(found)
    axes = figure.axes[0]
    assert axes.get_legend_handles_labels()[1] == ["adaptcache", "AB2"]
    on_top = max(axes.lines, key=lambda drawn: drawn.zorder)
    assert on_top.get_label() == "adaptcache" and axes.get_xscale() == "log"
    assert TIPS.findall(to_svg(figure, "")) == [
        "AB2: 30.0 dB, 2.0 calls", "AB2: 40.0 dB, 4.0 calls", "adaptcache: 60.0 dB, 4.0 calls"
    ]  # fmt: skip
    assert Image.open(write_png(build_pareto(found), tmp_path / "p.png")).width == 1350


def test_names_from_strangers_are_texts_in_charts() -> None:
    name = """$x_\\alpha <script> "quoted" 'too'"""
    svg = to_svg(build_pareto({name: [(2, 30)], "$\\nonsense$": [(3, 20)]}), name)
    assert "<script>" not in svg and svg.count("&lt;script&gt;") == 3  # label, point and legend
    Page(svg)


def test_a_front_shows_what_was_gained_and_what_was_picked(tmp_path: Path) -> None:
    lines = {"tuned": [(5, 40.0), (7, 45.0)], "calibrate": [(5, 39.0), (7, 44.0)], "held-out": [(5, 38.0)]}
    axes = build_front(lines, "mine", (7, 45.0)).axes[0]
    assert axes.get_legend_handles_labels()[1] == list(lines) and axes.get_title() == "mine"
    assert axes.collections[0].get_offsets().tolist() == [[7, 45.0]]
    assert Image.open(write_png(build_front(lines, "mine"), tmp_path / "f.png")).height == 675


def test_charts_without_matplotlib_name_the_extra(schedule: Schedule, monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"adaptcache-diffusers\[report\]"):
        build_report(schedule)


def test_a_file_that_lacks_a_part_says_which(schedule: Schedule, comparison: Path) -> None:
    (comparison / "comparison.json").write_text('{"prompts": []}')
    with pytest.raises(ScheduleError, match=r"is no comparison \(lines: Field required\)"):
        build_report(schedule, comparison)


def test_identical_images_are_exact_and_sizes_have_units(schedule: Schedule, comparison: Path) -> None:
    seen = Evidence(prompts="x", n=2, calls=(4, 8), psnr={"mean": 100.0, "p05": 100.0}, speed=2.0)
    text = build_report(schedule.model_copy(update={"evidence": seen}), comparison)
    assert "<b>exact</b>" in text and "100.0 dB" not in text and "7.2 kB" in text


def test_a_certificate_is_shown_as_its_sentence(schedule: Schedule) -> None:
    class Certified(Evidence):
        certificate: object = None

    class Certificate:
        sentence = "with 95 % confidence at most 5 % of prompts fall below 35 dB"

    evidence = Certified(
        prompts="x", n=2, calls=(4, 8), psnr={"mean": 40.0, "p05": 38.0}, speed=2.0, certificate=Certificate()
    )
    assert Certificate.sentence in build_report(schedule.model_copy(update={"evidence": evidence}))
    assert 'class="certificate"' not in build_report(schedule)


def test_large_images_are_shown_smaller(schedule: Schedule, comparison: Path) -> None:
    Image.new("RGB", (2000, 1000), "red").save(comparison / "a.png")
    uri = next(a["src"] for a in Page(build_report(schedule, comparison)).all("img", alt="full run"))
    with Image.open(io.BytesIO(base64.b64decode(str(uri).partition(",")[2]))) as image:
        assert image.size == (320, 160)


def measured(ours: float, fewer: float, *, shape: tuple[int, ...] = (4, 4, 3), **more: object) -> Measured:
    """What was measured of one schedule on three prompts, of which it does worst on the second."""
    rows = [Row(name, calls, {"mean": value, "p05": value}, None, loop, loop) for name, calls, value, loop in
            (("full run", 8, 100.0, 1.0), ("mine", 4, ours, 1.9), ("4 steps", 4, fewer, 2.0))]  # fmt: skip
    full = np.linspace(0, 0.4, 3 * math.prod(shape), dtype=np.float32).reshape(3, *shape)
    near, far = full + np.float32([0.01, 0.1, 0.02]).reshape(3, *[1] * len(shape)), full + 0.5
    made = [Generation(list(images), 1.0, 1.0, 4, 8) for images in (full, near, far)]
    return Measured.of(["a", "b", "c"], rows, made, most=2, **more)


def test_pictures_are_of_the_prompts_that_a_schedule_does_worst_on() -> None:
    found = measured(40, 30)
    assert found.prompts == ("b", "c") and found.held_out == 3
    assert list(found.columns()) == ["full run, 8 steps", "4 steps", "adaptcache, 4 calls"]
    assert psnr(found.images[1][0], found.images[0][0]) == pytest.approx(20)


def test_a_page_shows_full_ours_and_as_many_plain_steps_with_speed_and_verdict(schedule: Schedule) -> None:
    text = build_report(schedule, measured=measured(40, 30))
    page = Page(text)
    assert len(page.all("input", type="range")) == 4  # two prompts: ours and plain steps, each beside the full run
    assert len(page.all("script")) == 1 and page.all("td", **{"class": "number good"})
    assert "1.90 times as fast" in text and "10.0 dB nearer than 4 plain steps" in text and "+10.0 dB" in text
    assert page.all("p", **{"class": "verdict good"})
    worse = build_report(schedule, measured=measured(20, 30))
    assert "take those instead" in worse and Page(worse).all("p", **{"class": "verdict bad"})


def test_without_plain_steps_beside_it_nothing_is_called_good(schedule: Schedule) -> None:
    seen = Evidence(prompts="x", n=2, calls=(4, 8), psnr={"mean": 60.0, "p05": 50.0}, speed=2.0)
    sentence, grade = verdict(schedule.model_copy(update={"evidence": seen}))
    assert "were not measured" in sentence and grade == ""
    assert verdict(schedule)[1] == ""
    said = seen.model_copy(update={"verdict": "Do not cache: no."})
    assert verdict(schedule.model_copy(update={"evidence": said})) == ("Do not cache: no.", "bad")


def test_two_schedules_stand_on_one_page(schedule: Schedule, comparison: Path) -> None:
    other = schedule.model_copy(update={"name": "other"})
    page = Page(text := build_report([schedule, other]))
    assert "<title>by-hand and other</title>" in text and len(page.all("details")) == 4
    assert len(page.all("div", **{"class": "strip"})) == 2


def test_clips_play_and_sounds_are_heard(schedule: Schedule) -> None:
    clip = Page(build_report(schedule, measured=measured(40, 30, shape=(5, 4, 4, 3))))
    first = str(clip.all("img")[0]["src"])
    assert first.startswith("data:image/webp")
    with Image.open(io.BytesIO(base64.b64decode(first.partition(",")[2]))) as image:
        assert image.is_animated
    sound = Page(build_report(schedule, measured=measured(40, 30, shape=(2, 4000), rate=8000)))
    assert len(sound.all("audio")) == 6  # full, ours and plain steps of two prompts


def test_a_plot_has_eight_lines_at_most_ours_and_the_best_and_each_is_named_where_it_ends() -> None:
    lines = {f"method {k}": [(4, 20.0 + k), (8, 40.0 + k)] for k in range(12)} | {"adaptcache": [(4, 1.0), (8, 2.0)]}
    assert list(best_lines(lines, "adaptcache", 3)) == ["adaptcache", "method 11", "method 10"]
    axes = build_pareto(lines).axes[0]
    texts = [text.get_text() for text in axes.texts]
    assert len(texts) == 8 and "adaptcache" in texts and "method 4" not in texts
    heights = sorted(text.get_position()[1] for text in axes.texts)
    assert min(b - a for a, b in itertools.pairwise(heights)) > 0.9 * (axes.get_ylim()[1] - axes.get_ylim()[0]) / 20
    assert axes.get_title(loc="right") == "the best 8 of 13 methods"


def test_what_was_measured_with_other_arguments_is_a_table_in_colours(schedule: Schedule) -> None:
    class Seen(Evidence):
        matrix: object = None

    def cell(mean: float, plain: float) -> SimpleNamespace:
        worth = {"mean": mean, "p05": mean - 5}
        baseline = SimpleNamespace(steps=4, psnr={"mean": plain, "p05": plain})
        return SimpleNamespace(changed={"height": 768}, n=4, calls=(4, 8), psnr=worth, baseline=baseline)

    seen = Seen(prompts="x", n=2, calls=(4, 8), psnr={"mean": 60.0, "p05": 50.0}, speed=2.0)
    seen = seen.model_copy(update={"matrix": (cell(50, 40), cell(30, 40))})
    text = build_report(schedule.model_copy(update={"evidence": seen}))
    page = Page(text)
    assert text.count("height 768") == 2 and "45.0 dB" in text
    assert len(page.all("td", **{"class": "number good"})) == len(page.all("td", **{"class": "number bad"})) == 1
