"""The artifact: strict, stable, atomic."""

from __future__ import annotations

import json
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import schedule_of
from diffusers import FluxPipeline

from adaptcache.errors import ScheduleError
from adaptcache.files import check_writable, write_atomically, write_sound
from adaptcache.forecasts.base import Weights
from adaptcache.forecasts.matched import Matched, split_row
from adaptcache.schedule.schedule import Schedule

GOLDEN = Path(__file__).parent / "data"
SHIPPED = Path(__file__).parents[1] / "schedules"


def test_saved_and_loaded_it_is_the_same_to_the_byte(pipe: FluxPipeline, tmp_path: Path) -> None:
    schedule = schedule_of(pipe, [0, 3])
    first = schedule.save(tmp_path / "a.json").read_bytes()
    assert Schedule.load(tmp_path / "a.json").save(tmp_path / "b.json").read_bytes() == first


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("schedule-*.json")), ids=lambda path: path.name)
def test_golden_files_load_for_ever(path: Path, tmp_path: Path) -> None:
    assert Schedule.load(path).save(tmp_path / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    "path",
    [*sorted(SHIPPED.glob("*x.json")), *sorted(GOLDEN.glob("schedule-*.json"))],
    ids=lambda path: path.stem,
)
def test_a_schedule_is_shown_in_a_line_and_as_a_small_table(path: Path) -> None:
    schedule = Schedule.load(path)
    shown = schedule.model_copy(update={"name": "<mine>"})
    line, table = repr(shown), shown._repr_html_()
    assert len(line) < 1000 and "\n" not in line and "'<mine>'" in line and str(shown)
    assert all(f"{len(plan)}" in line for plan in schedule.plans) and schedule.rules[0].policy.type in line
    assert "&lt;mine&gt;" in table and "<mine>" not in table and table.count("█") == sum(map(len, schedule.plans))
    if seen := schedule.evidence:
        assert f"{seen.psnr['mean']:.1f} dB on {seen.n} prompts" in line


def test_a_schedule_tells_its_steps(pipe: FluxPipeline) -> None:
    schedule = schedule_of(pipe, [0, 2, 5])
    assert schedule.steps() == schedule.steps(-1) == [0, 2, 5] and schedule.plans == [[0, 2, 5]]
    assert schedule.steps(times=(1.0, 0.75, 0.5)) == [0, 1, 2]
    with pytest.raises(LookupError, match=r"no gear 1: by-hand has 1 \(0 to 0\)"):
        schedule.steps(1)
    uniform = Schedule.of("pab", interval=3)
    assert uniform.plans == [] and uniform.steps(times=(1.0, 0.7, 0.5, 0.3, 0.05)) == [0, 3, 4]  # its window
    with pytest.raises(ScheduleError, match="say for which times"):
        uniform.steps()
    with pytest.raises(ScheduleError, match=r"decides during the run \(policy 'drift'\)"):
        Schedule.of("dicache").steps(times=(1.0, 0.5))
    assert "'blocks: drift, gamma'" in repr(Schedule.of("dicache"))


def test_a_matched_forecast_needs_its_grid(pipe: FluxPipeline) -> None:
    rule = schedule_of(pipe, [0], steps=2, forecast=Matched(features=(), table=((((), (1.0,)),),))).rules[0]
    assert rule.matched and not rule.guarded and not rule.chooses and rule.gears == 1
    with pytest.raises(ValueError, match="needs the grid that it was fitted on"):
        Schedule(name="none", rules=(rule,))


def broken(data: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**data, **changes}


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "is not JSON"),
        ('{"format": 1, "rules": [], "format": 2}', "it says 'format' twice"),
        ("\x00\x01", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[1, 2]", "has no 'rules'"),
        ('{"hello": 1}', "has no 'rules'"),
    ],
)
def test_what_is_no_schedule_is_refused(content: str, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text(content)
    with pytest.raises(ScheduleError, match=complaint):
        Schedule.load(tmp_path / "s.json")


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"format": 4}, "has format 4, this adaptcache reads 1 to 3"),
        ({"colour": "red"}, "colour: Extra inputs are not permitted"),
        ({"grid": {"scheduler": "S", "times": [0.5, 0.9]}}, "must fall"),
        ({"grid": {"scheduler": "S", "times": [7.0]}}, "less than or equal to 1"),
        ({"rules": []}, "at least 1 item"),
        ({"made": {"scheduler": "euler"}}, "made: Value error, scheduler: Input should be a valid dictionary"),
        ({"made": {"components": {"vae": {"class": "V"}}}}, "components.vae.dtype: Field required"),
        ({"made": {"guiders": {"guider": {"class": "G", "scale": "3"}}}}, "guiders.guider.scale"),
        ({"made": {"branches": 2}}, "made: Value error, branches"),
        ({"kernel": {"times": [1.0, 0.5], "gram": [[1.0]], "sensitivity": [1.0]}}, "2 x 2 products"),
    ],
)
def test_a_schedule_with_a_mistake_is_refused(
    changes: dict[str, Any], complaint: str, pipe: FluxPipeline, tmp_path: Path
) -> None:
    data = json.loads(schedule_of(pipe, [0, 3]).save(tmp_path / "s.json").read_text())
    (tmp_path / "s.json").write_text(json.dumps(data | changes))
    with pytest.raises(ScheduleError, match=complaint):
        Schedule.load(tmp_path / "s.json")


def test_numbers_that_are_not_finite_are_refused(pipe: FluxPipeline, tmp_path: Path) -> None:
    table = (((), (float("nan"), 1.0, 1.0)) + ((),) * 6,)
    with pytest.raises(ValueError, match="finite"):
        Matched(table=(table,))


@pytest.mark.parametrize(
    ("features", "row", "message"),
    [
        (("past_x", "x"), (1.0,) * 4, r"4 weights; it needs 2 for each of 1 to 4 outputs and 1 for other"),
        (("x", "past_x"), (1.0,) * 3, "past_x has to be the first"),
        (("x", "x"), (1.0,) * 3, "name one twice"),
        (("x", "x0"), (1.0,) * 2, r"2 weights; it needs 1 for each"),
    ],
)
def test_rows_that_do_not_go_with_the_features_are_refused(features: tuple, row: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Matched(features=features, table=((((), row),),))


def test_a_row_gives_each_output_the_latents_before_it() -> None:
    weights = split_row((1.0, 2.0, 3.0, 4.0, 5.0, 6.0), ("past_x", "x", "x0"))
    assert weights == Weights((1.0, 2.0), 5.0, 6.0, (3.0, 4.0))
    assert split_row((1.0, 2.0, 3.0), ("x0",)) == Weights((1.0, 2.0), 0.0, 3.0)


def test_a_plan_without_weights_for_a_skipped_step_is_refused(pipe: FluxPipeline) -> None:
    rows = ((), (0.5,), (), (0.5,), (0.5,), (), (0.5,), (0.5,))  # step 5 is neither computed nor weighted
    with pytest.raises(ValueError, match="weights are missing for some of the 8 steps"):
        schedule_of(pipe, [0, 2], forecast=Matched(features=(), table=((rows,),)))


def test_weights_at_computed_steps_make_a_file_of_format_2(pipe: FluxPipeline, tmp_path: Path) -> None:
    rows = ((), (0.5,), (0.9, 0.1), *((0.5,),) * 5)
    schedule = schedule_of(pipe, [0, 2], forecast=Matched(features=(), table=((rows,),)))
    saved = schedule.save(tmp_path / "s.json")
    assert schedule.corrects and schedule.format == json.loads(saved.read_text())["format"] == 2
    assert Schedule.load(saved) == schedule
    saved.write_text(saved.read_text().replace('"format": 2', '"format": 1'))
    with pytest.raises(ScheduleError, match="says format 1 and holds what format 2 brought"):
        Schedule.load(saved)
    with pytest.raises(ValueError, match="at the site 'step' alone"):
        Schedule.model_validate({**dict(schedule), "rules": [{**dict(schedule.rules[0]), "site": "blocks"}]})


def test_a_missing_file_names_the_cure(tmp_path: Path) -> None:
    with pytest.raises(ScheduleError, match=r"No such file.*adaptcache calibrate"):
        Schedule.load(tmp_path / "none.json")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s.json"
    write_atomically(path, b"old")

    def full(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("adaptcache.files.os.replace", full)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_sound_is_a_wav_file_of_sixteen_bits(tmp_path: Path) -> None:
    for channels in (1, 2):
        samples = np.random.default_rng(channels).uniform(-1.2, 1.2, (channels, 500)).astype(np.float32)
        path = write_sound(tmp_path / "s.wav", samples, 16_000)
        with wave.open(str(path)) as file:
            assert file.getparams()[:4] == (channels, 2, 16_000, 500)
            frames = np.frombuffer(file.readframes(500), "<i2").reshape(500, channels)
        assert frames == pytest.approx(samples.T.clip(-1, 1) * 32767, abs=0.51)


def test_what_cannot_be_written_is_known_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="is not a folder"):
        check_writable(tmp_path / "file" / "s.json")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        check_writable(tmp_path)
    assert check_writable(tmp_path / "new" / "s.json") and not (tmp_path / "new").exists()
