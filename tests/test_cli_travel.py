"""`adaptcache push`, and what follows it, as a person types them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from hub_stand_in import Hub
from test_export import kernel, schedule
from test_hub import hub  # noqa: F401 - a fixture
from typer.testing import CliRunner

from adaptcache.cli.export import export, push
from adaptcache.cli.report import report
from adaptcache.cli.show import show
from adaptcache.schedule.schedule import Schedule

app = typer.Typer()
app.command()(export)
app.command()(push)
app.command()(report)
app.command()(show)


def typed(*words: object) -> str:
    result = CliRunner().invoke(app, list(map(str, words)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return schedule([0, 2, 5], kernel()).save(tmp_path / "mine.json")


def test_push_fills_a_folder_that_loads_elsewhere(saved: Path, tmp_path: Path) -> None:
    said = typed("push", saved, tmp_path / "shared", "--name", "fast")
    assert "adaptcache_config.json and its model card" in " ".join(said.split())
    assert Schedule.from_pretrained(tmp_path / "shared", "fast") == Schedule.load(saved)
    assert (tmp_path / "shared" / "README.md").is_file()


def test_what_was_pushed_is_shown_exported_reported_and_pushed_on(saved: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    typed("push", saved, "./shared")
    assert json.loads(typed("show", "./shared", "--json")) == json.loads(typed("show", saved, "--json"))
    name = Schedule.load(saved).name
    typed("export", "./shared", "--to", "xdit")
    typed("report", "./shared")
    assert "wrote x[bold].html" in typed("report", "./shared", "--out", "x[bold].html")
    typed("push", "shared", "./further")
    assert (tmp_path / f"{name}.xdit.json").is_file() and (tmp_path / f"{name}.html").is_file()
    assert Schedule.from_pretrained("./further") == Schedule.load(saved)


def test_push_reaches_the_hub(saved: Path, hub: Hub, monkeypatch) -> None:  # noqa: F811
    monkeypatch.setenv("HF_TOKEN", hub.token)
    said = typed("push", saved, "user/mine", "--message", "Hello", "--private")
    assert "pushed to http://127.0.0.1" in said
    assert hub.messages == ["Hello"] and hub.private == {"user/mine"}
    assert Schedule.from_pretrained("user/mine") == Schedule.load(saved)
