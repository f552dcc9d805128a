"""The tables and the folder of a comparison: what is printed is what was measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from adaptcache.cli import screen
from adaptcache.cli.compare import (
    cost_table,
    notes_of,
    result_rows,
    result_table,
    worst,
    write_folder,
    write_markdown,
)
from adaptcache.comparison.compare import Comparison
from adaptcache.comparison.runner import Cost, MethodResult

FULL = MethodResult(
    "full run", 1.0, 8.0, 32.0, {"mean": 100.0, "p05": 100.0}, None, 0.0, {"mean": 41.0, "p05": 40.0},
    1.0, 1.0, 0, [100.0, 100.0],
)  # fmt: skip
OURS = MethodResult(
    "adaptcache", 0.5, 4.0, 16.0, {"mean": 50.0, "p05": 45.0}, {"mean": 0.99, "p05": 0.98}, 0.01,
    {"mean": 40.0, "p05": 39.0}, 0.5, 1.9, 7168, [52.0, 48.0], {"plan": [0, 2, 4, 6]},
)  # fmt: skip
FIRST = MethodResult(
    "FirstBlockCache", 0.5, 4.0, 16.0, {"mean": 44.0, "p05": 40.0}, None, 0.1, speed=1.5, memory=0, unprobed=3.4,
    lead={"mean": 6.04, "ci95": 1.26}, over_budget=(5.3,),
)  # fmt: skip
BROKEN = MethodResult("PAB", 0.5, note="broke: no such thing")
COSTS = [Cost("adaptcache", {"full runs": 24.0, "matching": 12.0}), Cost("PAB", {}, 16.0, 4)]


def rows(path: Path) -> list[list[str]]:
    lines = path.read_text().splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line[:1] == "|"]


def test_markdown_has_a_row_a_line_and_a_note_where_there_are_no_numbers(tmp_path: Path) -> None:
    found = rows(write_markdown(tmp_path / "t.md", [FULL, OURS, BROKEN, FIRST], COSTS, 8, "share shown"))
    assert len({len(row) for row in found[:6]}) == 1
    assert found[0][4:9] == ["lead dB", "SSIM", "latent error", "to exact dB", "share shown"]
    assert found[2][:3] == ["1", "full run", "exact"] and found[2][7] == "41.0"
    assert found[3][:4] == ["0.5", "**adaptcache**", "50.0", "45.0"]
    assert found[3][7:] == ["40.0", "0.50", "4.0", "16", "1.90x", "7.2 kB"]
    assert found[4][:3] == ["0.5", "PAB", "broke: no such thing"]
    assert found[5][4] == "+6.0 ± 1.3" and found[5][9] == "4.0 (3.4 without probe)"
    assert found[8] == ["**adaptcache**", "36", "", "0", "4", "full runs 24, matching 12"]
    assert found[9] == ["PAB", "0", "4", "16", "2", ""]


def test_columns_without_values_are_left_out() -> None:
    bare = MethodResult("AB2", 0.5, 4.0, 16.0, {"mean": 50.0, "p05": 45.0}, None, 0.01, speed=1.0, memory=0)
    headings = [column.header for column in result_table([bare]).columns]
    assert (
        not {"to exact dB", "lead dB"} & set(headings) and "calls" in headings and cost_table(COSTS, 8).row_count == 2
    )


def test_on_the_screen_notes_stand_below_the_table_a_line_a_method() -> None:
    again = MethodResult("PAB", 0.25, note="broke again")
    assert result_table([FULL, OURS, BROKEN]).row_count == 2
    assert notes_of([FULL, OURS, BROKEN, again, FIRST]) == [
        "PAB at 0.5, 0.25: broke: no such thing",
        "FirstBlockCache at 0.5: over budget on the held-out prompts with 5.3 calls; the next setting below was taken",
    ]


def test_wide_tables_are_not_cut_off_on_narrow_screens(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(screen.out, "_width", 60)
    screen.print_whole(result_table([FULL, OURS, BROKEN], "share of images that show their caption"))
    printed = capsys.readouterr().out
    assert "…" not in printed and "share of images that show their caption" in printed and "50.0" in printed
    assert screen.out.width == 60


def test_the_images_kept_are_of_the_prompts_we_do_worst_on(tmp_path: Path) -> None:
    assert worst([FULL, OURS], 2) == [1, 0] and worst([FULL], 9) == [0, 1, 2, 3, 4, 5]
    images = {name: [np.full((4, 4, 3), k / 2) for k in range(2)] for name in ("full run", "adaptcache 0.5")}
    result = Comparison(8, 2, 1, [FULL, OURS, BROKEN], COSTS, {}, images, {})
    write_folder(tmp_path, result, {**result.data(), "measure": ""}, ["a", "b"], "tiny")
    data = json.loads((tmp_path / "comparison.json").read_text())
    assert data["rows"] == [1, 0] and data["prompts"] == ["a", "b"]
    assert data["costs"][0]["calibration"] == {"full runs": 24, "matching": 12}
    assert all((tmp_path / name).is_file() for names in data["images"].values() for name in names)
    assert {"pareto.png", "sheet-0.5.png", "comparison.md"} <= {path.name for path in tmp_path.iterdir()}


def test_a_lead_on_one_prompt_has_no_interval() -> None:
    headings, (row,) = result_rows([replace(FIRST, lead={"mean": 6.04, "ci95": None})])
    assert row[headings.index("lead dB")] == "+6.0"
