"""A newcomer's first hour: commands of README and docs, and wrong inputs, each with the last line it ends with.

`first_hour.txt` is the record: a command after `$`, then its last line on stdout after `>`, or, for wrong inputs, on
stderr after `!` (exit code 2, one line, nothing on stdout). `*` stands for what differs between machines.
"""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from adaptcache.cli import main

HERE = Path(__file__).parent
RECORD = re.findall(r"^\$ adaptcache (.*)\n([>!]) (.*)$", (HERE / "first_hour.txt").read_text(encoding="utf-8"), re.M)
PROMPTS = ["red heart noto style blue", "pizza noto style teal", "fox noto style red", "dog face noto style pink"]


def test_the_record_has_forty_commands_and_twenty_wrong_inputs() -> None:
    marks = [mark for _, mark, _ in RECORD]
    assert marks.count(">") >= 40 and marks.count("!") >= 20


@pytest.mark.parametrize(
    "mark", [pytest.param(">", marks=pytest.mark.slow, id="commands"), pytest.param("!", id="wrong inputs")]
)
@pytest.mark.filterwarnings("ignore")
def test_each_command_ends_as_it_is_recorded(
    mark: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(HERE.parent / "schedules", tmp_path / "schedules")
    (tmp_path / "mine.txt").write_text("".join(f"{prompt} background\n" for prompt in PROMPTS))
    (tmp_path / "notes.txt").write_text("not a schedule\n")
    if mark == "!":  # made by a command before
        shutil.copy(tmp_path / "schedules" / "emoji-flux-32-28-2x.json", tmp_path / "s2.json")
    monkeypatch.chdir(tmp_path)
    wrong = []
    for words, _, last in (one for one in RECORD if one[1] == mark):
        monkeypatch.setattr(sys, "argv", ["adaptcache", *shlex.split(words)])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capsys.readouterr()
        said, code = (out, 0) if mark == ">" else (err, 2)
        lines = [" ".join(line.split()) for line in said.splitlines() if line.strip()] or [""]
        alone = mark == ">" or (len(lines) == 1 and not out)
        expected = ".*".join(map(re.escape, last.split("*")))
        if (end.value.code or 0) != code or not alone or not re.fullmatch(expected, lines[-1]):
            wrong.append(f"$ adaptcache {words}\n{mark} {lines[-1]}   [{end.value.code}] {err.strip()[-300:]}")
    assert not wrong, "\n".join(wrong)
