"""Every file either loads or is refused with the documented error: `make fuzz`, in small."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adaptcache.errors import ScheduleError
from adaptcache.limits import check_name, check_plain, parse_json
from adaptcache.presets import Preset
from adaptcache.profile import Profile
from adaptcache.schedule.schedule import LARGEST, Schedule
from tests.fuzz.artifacts import kinds
from tests.fuzz.trial import meter, trial

KINDS = kinds()
SEED = json.loads(KINDS["schedule"].seeds[0])
ONE_FOLDER = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize("name", KINDS)
def test_the_files_that_are_mutated_are_good(name: str, tmp_path: Path) -> None:
    path = tmp_path / f"seed{KINDS[name].ending}"
    for content in KINDS[name].seeds:
        path.write_bytes(content)
        assert KINDS[name].read(path)


@pytest.mark.parametrize("name", KINDS)
def test_a_mutated_file_loads_or_is_refused(name: str, tmp_path: Path) -> None:
    found = trial(name, KINDS[name], 300, tmp_path, seed=1)
    assert found.escaped == []
    assert found.loaded + found.refused == 300 and found.refused > 0 and found.peak < 100


@settings(max_examples=100, deadline=None, suppress_health_check=ONE_FOLDER)
@given(key=st.sampled_from(sorted(SEED)), value=ANYTHING)
def test_whatever_stands_in_a_part_of_a_schedule_it_loads_and_saves_or_is_refused(
    key: str, value: Any, tmp_path: Path
) -> None:
    path = tmp_path / "s.json"
    path.write_text(json.dumps(SEED | {key: value}))
    try:
        loaded = Schedule.load(path)
    except ScheduleError:
        return
    saved = loaded.save(tmp_path / "again.json")  # numbers are rounded once, and never again
    assert Schedule.load(saved).save(tmp_path / "third.json").read_bytes() == saved.read_bytes()


@settings(max_examples=100, deadline=None, suppress_health_check=ONE_FOLDER)
@given(content=st.binary(max_size=300))
def test_bytes_are_no_profile(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "p.safetensors").write_bytes(content)
    with pytest.raises(ScheduleError):
        Profile.load(tmp_path / "p.safetensors")


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    with path.open("wb") as file:
        file.truncate(LARGEST * 1000)
    with pytest.raises(ScheduleError, match="more than 1,048,576 bytes"):
        Schedule.load(path)


def test_a_preset_with_a_key_of_many_parts_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    path.write_bytes((b"a.b." * 800 + b"c = 1\n") * 5)
    with pytest.raises(ValueError, match="more than 200 dots"):
        Preset.load(path)


def test_a_folder_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        for read in (Schedule.load, Profile.load):
            with pytest.raises(ScheduleError, match="cannot read"):
                read(path)


@pytest.mark.parametrize("name", ["", "../x", "a/b", "a\\b", ".hidden", "a\nb", "a\x1b[2J", "x" * 201])
def test_a_name_cannot_lead_out_of_a_folder_or_rewrite_a_screen(name: str) -> None:
    with pytest.raises(ValueError, match="is no name"):
        check_name(name)


@pytest.mark.parametrize("where", [("denoiser",), ("grid", "times"), ("rules",), ("kernel", "gram"), ("made",)])
@pytest.mark.parametrize(
    "bad", [[[]] * 300_000, [{}] * 300_000, ["x"] * 190_000, [-1.0] * 190_000, [True] * 190_000,
            {f"k{i}": 0 for i in range(80_000)}, [[-1.0] * 900] * 200], ids=lambda bad: str(bad)[:12],
)  # fmt: skip
def test_a_million_wrong_entries_cost_one_complaint(where: tuple, bad: Any, tmp_path: Path) -> None:
    data = json.loads(KINDS["schedule"].seeds[0])
    inner = data
    for key in where[:-1]:
        inner = inner[key]
    inner[where[-1]] = bad
    path = tmp_path / "s.json"
    path.write_text(json.dumps(data, separators=(",", ":")))
    assert path.stat().st_size < LARGEST
    grown, since = meter(), time.thread_time()
    with pytest.raises(ScheduleError):
        Schedule.load(path)
    assert time.thread_time() - since < 0.2 and grown() < 100  # 50 ms where nobody else computes


@pytest.mark.parametrize("text", ["NaN", "[-Infinity]", "1" * 30, "[" * 9**6, '"\\ud800"', "\ufeff\ufeff1"])
def test_json_that_cannot_be_written_again_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_json(text.encode())


@pytest.mark.parametrize("value", [float("inf"), 2**70, "x" * 10_001, [0] * 10_001, object(), {"a": b""}])
def test_what_is_only_kept_has_to_be_small_and_plain(value: Any) -> None:
    with pytest.raises(ValueError):
        check_plain({"deep": [value]})


def test_the_meter_sees_what_one_input_takes_and_forgets_it() -> None:
    def taken(megabytes: int) -> float:
        grown = meter()
        bytearray(b"x") * (megabytes * 2**20)
        return grown()

    assert taken(80) > 60
    assert taken(1) < 60
