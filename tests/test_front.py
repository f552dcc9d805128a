"""Fronts: what is saved is what is loaded, hostile files are refused, and picking costs nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Run, schedule_of, tiny_flux

from adaptcache.errors import ScheduleError
from adaptcache.schedule.schedule import Schedule
from adaptcache.tuning.front import Front, Point


@pytest.fixture(scope="module")
def front() -> Front:
    """Three points, made by hand."""
    pipe = tiny_flux()
    points = tuple(
        Point(
            calls=len(plan), select={"mean": mean, "p05": mean - 3}, gain=0.5, origin="shift",
            schedule=schedule_of(pipe, plan),
        )
        for plan, mean in (([0, 4], 31.0), ([0, 2, 5], 36.0), ([0, 1, 3, 5, 7], 44.0))
    )  # fmt: skip
    return Front(name="by-hand", target="min psnr 35 dB", trials=30, chosen=1, points=points)


def test_a_front_survives_its_file(front: Front, tmp_path: Path) -> None:
    path = front.save(tmp_path / "front.json")
    assert Front.load(path) == front
    assert Front.load(path).save(tmp_path / "again.json").read_bytes() == path.read_bytes()


@pytest.mark.parametrize(("wish", "calls"), [("3", 3), ("4", 3), ("99", 5), ("35dB", 3), ("31 db", 2), ("36.5dB", 5)])
def test_the_best_point_that_meets_a_wish_is_picked(wish: str, calls: int, front: Front) -> None:
    assert front.pick(wish).calls == calls


@pytest.mark.parametrize(
    ("wish", "complaint"),
    [
        ("1", r"no point of by-hand has 1; there are calls 2 \(31.0 dB\), 3 \(36.0 dB\), 5 \(44.0 dB\)"),
        ("50dB", "no point of by-hand has 50dB; there are calls 2"),
        ("fast", "cannot pick 'fast': give a number of calls"),
        ("-3", "cannot pick '-3'"),
        ("2.5", "cannot pick '2.5'"),
        ("9" * 400, "cannot pick '9{40}'"),
    ],
)
def test_what_cannot_be_picked_is_said(wish: str, complaint: str, front: Front) -> None:
    with pytest.raises((LookupError, ValueError), match=complaint):
        front.pick(wish)


def changed(change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], bytes]:
    def made(data: dict[str, Any]) -> bytes:
        change(data)
        return json.dumps(data).encode()

    return made


HOSTILE: dict[str, tuple[Callable[[dict[str, Any]], bytes], str]] = {
    "cut short": (lambda data: json.dumps(data).encode()[:-50], "is not JSON"),
    "not text": (lambda data: b"\xff\xfe\x00", "is not JSON"),
    "too large": (lambda data: b" " * (2**23 + 1), "more than 8,388,608 bytes"),
    "a list": (lambda data: b"[1, 2]", "is not a front"),
    "a schedule": (lambda data: json.dumps(data["points"][0]["schedule"]).encode(), "is not a front"),
    "another format": (
        changed(lambda data: data.update(front=2)),
        "has front format 2, this adaptcache reads 1",
    ),
    "an unknown key": (changed(lambda data: data.update(code="import os")), "code: Extra inputs"),
    "no points": (changed(lambda data: data.update(points=[])), "points: Tuple should have at least 1"),
    "many points": (changed(lambda data: data.update(points=data["points"] * 100)), "at most 256"),
    "points that fall": (changed(lambda data: data["points"].reverse()), "rising numbers of calls"),
    "a point twice": (
        changed(lambda data: data["points"].append(data["points"][2])),
        "rising numbers of calls",
    ),
    "a choice beyond": (changed(lambda data: data.update(chosen=3)), "point 3 was chosen, there are 3"),
    "not finite": (
        changed(lambda data: data["points"][0].update(gain=float("nan"))),
        "NaN is no JSON number",
    ),
    "a bad name": (changed(lambda data: data.update(name="../../x")), "name: .*is no name"),
    "a bad schedule": (
        changed(lambda data: data["points"][1]["schedule"]["rules"].clear()),
        "points.1.schedule.rules: Tuple should have at least 1",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_front_is_one_line(case: str, front: Front, tmp_path: Path) -> None:
    make, complaint = HOSTILE[case]
    path = tmp_path / "front.json"
    path.write_bytes(make(front.model_dump(mode="json", by_alias=True, exclude_none=True)))
    with pytest.raises(ScheduleError, match=complaint) as caught:
        Front.load(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 900
    with pytest.raises(ScheduleError, match="cannot read"):
        Front.load(tmp_path / "nowhere.json")


def test_show_prints_a_front_and_writes_its_points(run: Run, front: Front, tmp_path: Path) -> None:
    front.save("front.json")
    code, out, _ = run("show", "front.json")
    assert code == 0 and "min psnr 35 dB, 30 trials" in out
    assert [line.split()[:2] for line in out.splitlines()[2:5]] == [
        ["2", "4.00x"],
        ["→", "3"],
        ["5", "1.60x"],
    ]
    code, out, _ = run("show", "front.json", "--json")
    assert code == 0 and json.loads(out)["chosen"] == 1
    code, out, _ = run("show", "front.json", "--pick", "4", "--out", "s.json")
    assert code == 0 and "3 calls, 36.0 dB" in out
    assert Schedule.load(tmp_path / "s.json") == front.points[1].schedule
    code, _, err = run("show", "s.json", "--pick", "4")
    assert code == 2 and "is one schedule" in err and err.count("\n") == 1
    code, _, err = run("show", "front.json", "--pick", "0")
    assert code == 2 and err.startswith("error: no point of by-hand") and err.count("\n") == 1
    code, _, err = run("show", "front.json", "--out", "t.json")
    assert code == 2 and "--pick 10" in err and not Path("t.json").exists()


def test_a_plot_is_a_picture(front: Front, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from PIL import Image

    from adaptcache.cli.tune import draw

    assert Image.open(draw(front, tmp_path / "front.png")).size == (1050, 675)


QUICK = ("--steps", "4", "--fit-on", "4", "--eval-on", "2", "--batch-size", "2", "--trials", "4")


def test_tune_writes_a_schedule_and_its_front(run: Run, tmp_path: Path) -> None:
    code, out, err = run("tune", "--speed", "2", *QUICK, "--out", "new/s.json", "--json")
    assert code == 0, err
    printed, schedule = json.loads(out), Schedule.load(tmp_path / "new" / "s.json")
    assert printed["trials"] == 4 and printed["evidence"]["calls"] == [2, 4]
    assert Front.load(tmp_path / printed["front"]).points[0].schedule == schedule
    code, _, err = run("tune", "--speed", "2", *QUICK)
    assert code == 2 and "4 trials of this search are in the storage" in err
    code, _, err = run("tune", "--speed", "2", *QUICK, "--resume", "--eval-on", "2", "--at-most", "0.05")
    assert code == 0, err  # options by their old names
    code, out, _ = run("tune", "--speed", "2", *QUICK, "--resume", "--out", "s2.json")
    assert code == 0 and "2 calls: " in out
    assert (tmp_path / "s2.json").read_bytes() == (tmp_path / "new" / "s.json").read_bytes()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--speed", "2", "--budget", "0.5"), "speed and budget are two targets"),
        (("--max-latency", "soon"), "'soon' is no time"),
        (("--min-psnr", "35"), "32 held-out prompts cannot show"),
        (("--min-psnr", "101"), "nothing reaches 101 dB"),
        (("--max-calls", "99"), "max_calls must be in [1, 28]"),
        (("--speed", "2", "--workers", "0"), "--workers"),
        (("--speed", "2", "--out", "."), "is a folder"),
    ],
)
def test_bad_words_are_one_line_before_anything_is_loaded(
    words: tuple[str, ...], complaint: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adaptcache.presets.Preset.load_pipeline", None)
    code, _, err = run("tune", *words)
    assert code == 2 and complaint in err and err.count("\n") == 1


def test_times_are_read() -> None:
    from adaptcache.cli.tune import read_seconds

    assert [read_seconds(text) for text in ("1.8s", "900ms", "2min", "3", "1h")] == [1.8, 0.9, 120, 3, 3600]
    for text in ("", "fast", "-1s", "1 day", "1.8.1s", "1e400s"):
        with pytest.raises(ValueError, match="is no time"):
            read_seconds(text)


@pytest.mark.slow
def test_workers_of_the_command_line_share_the_trials(run: Run, tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna")
    from adaptcache.tuning.evaluator import Candidate

    code, _, err = run("tune", "--speed", "2", *QUICK, "--trials", "24", "--workers", "2", "--out", "s.json")
    assert code == 0 and "ended early" not in err, err
    storage = f"sqlite:///{tmp_path}/home/tuning.db"
    (name,) = optuna.get_all_study_names(storage)
    trials = optuna.load_study(study_name=name, storage=storage).get_trials()
    made = [trial for trial in trials if trial.state.name in ("COMPLETE", "PRUNED")]
    assert len({Candidate.suggest(trial, 4) for trial in made}) == len(made) <= 24
