"""The README's Python runs and prints what its comments say, and its numbers are those of the schedules that ship."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest

from adaptcache.schedule.schedule import Schedule

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
NUMBER = re.compile(r"\d+\.\d+")
STRIP = re.compile("[█·]+")


def test_the_example_prints_what_its_comments_say(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    said = re.findall(r"^print\(.*\)  # (.*)$", code, re.M)
    monkeypatch.chdir(ROOT)
    space: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(code.replace('"mine.json"', repr(str(tmp_path / "mine.json"))), "README.md", "exec"), space)
    lines = printed.getvalue().splitlines()
    like = [[NUMBER.sub("#", STRIP.sub("strip", line)) for line in part] for part in (lines, said)]
    assert like[0] == like[1] and said  # which steps are computed is decided by rounding where plans are near
    for here, there in zip(lines, said, strict=True):  # other machines round otherwise
        assert list(map(float, NUMBER.findall(here))) == pytest.approx(list(map(float, NUMBER.findall(there))), abs=2)
    assert space["image"].size == (64, 64) and (tmp_path / "mine.json").is_file()


@pytest.mark.parametrize("speed", ["2", "2.8", "4", "5.6"])
def test_the_table_has_the_numbers_of_the_schedules_that_ship(speed: str) -> None:
    (row,) = re.findall(rf"^\| \*\*adaptcache, {re.escape(speed)}x\*\* \|(.*)$", TEXT, re.M)
    calls, _, mean, low, _ = (cell.strip(" *") for cell in row.strip("|").split("|")[:5])
    seen = Schedule.load(ROOT / "schedules" / f"emoji-flux-28-{speed}x.json").evidence
    assert seen and seen.calls == (int(calls), 28)
    assert (seen.psnr["mean"], seen.psnr["p05"]) == pytest.approx((float(mean), float(low)), abs=0.06)


def test_every_link_leads_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:]+)[)#]", TEXT):
        assert (ROOT / target).exists(), target
