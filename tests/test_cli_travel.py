"""`adaptcache export` and `adaptcache push`, as a person types them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from conftest import CALL, STEPS, embedded, schedule_of, tiny_flux
from hub_stand_in import Hub
from test_export import kernel, schedule
from test_hub import hub  # noqa: F401 - a fixture
from typer.testing import CliRunner

from adaptcache.cli.export import export
from adaptcache.cli.push import push
from adaptcache.cli.report import report
from adaptcache.cli.show import show
from adaptcache.engines.formats import ENGINES
from adaptcache.engines.formats import export as form
from adaptcache.engines.formats.measure import applied, measured
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


def test_export_writes_the_file_and_says_what_is_lost(saved: Path, tmp_path: Path) -> None:
    target = tmp_path / "plan.yaml"
    said = typed("export", saved, "--to", "cache-dit", "--out", target)
    assert target.read_text() == form(Schedule.load(saved), "cache-dit").text
    assert f"wrote {target}" in said and "lost" in said and "predicted" in said
    assert f'load_configs("{target}")' in said


@pytest.mark.parametrize("engine", ENGINES)
def test_export_names_its_file_after_the_schedule_and_the_engine(
    engine: str, saved: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = json.loads(typed("export", saved, "--to", engine, "--json", "--calls", 4))
    assert said["out"].startswith(f"mine.{engine}.") and Path(said["out"]).is_file()
    assert sum(said["mask"]) == 4 or engine in ("tensorrt-llm", "comfyui-teacache")
    assert said["measured"] is None


def test_export_refuses_before_it_works(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(LookupError, match="no engine 'comfy'"):
        typed("export", saved, "--to", "comfy")
    with pytest.raises(LookupError, match="sglang does not run here"):
        typed("export", saved, "--to", "sglang", "--check-on", 2, "--out", tmp_path / "x.json")
    assert not (tmp_path / "x.json").exists()
    with pytest.raises(LookupError, match=r"no gear 3"):
        typed("export", saved, "--to", "xdit", "--gear", 3)


def test_push_fills_a_folder_that_loads_elsewhere(saved: Path, tmp_path: Path) -> None:
    said = typed("push", saved, tmp_path / "shared", "--name", "fast")
    assert "adaptcache_config.json and its model card" in " ".join(said.split())
    assert Schedule.from_pretrained(tmp_path / "shared", "fast") == Schedule.load(saved)
    assert (tmp_path / "shared" / "README.md").is_file()


def test_what_was_pushed_is_shown_exported_reported_and_pushed_on(
    saved: Path, tmp_path: Path, monkeypatch
) -> None:
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


def test_what_is_measured_is_the_engine_and_the_pipeline_is_left_as_it_was() -> None:
    pipe = tiny_flux(num_layers=2)
    prompts, before = embedded(2), CALL(pipe, embedded(1))
    worse = form(schedule_of(pipe, [0]), "diffusers")
    all_steps = form(schedule_of(pipe, list(range(STEPS))), "diffusers")
    done: list[int] = []
    exact = measured(pipe, CALL, prompts, all_steps, progress=done.append)
    assert exact == {"mean": 100.0, "p05": 100.0} and done == [1, 2, 3, 4]
    assert measured(pipe, CALL, prompts, worse)["mean"] < 60
    assert (CALL(pipe, embedded(1)) == before).all()
    with (
        pytest.raises(LookupError, match="xdit does not run here"),
        applied(pipe, form(schedule([0]), "xdit")),
    ):
        pass


def test_cache_dit_can_be_measured() -> None:
    pytest.importorskip("cache_dit")
    pipe = tiny_flux(num_layers=2)
    before = CALL(pipe, embedded(1))
    exported = form(schedule_of(pipe, [0, 1, 4]), "cache-dit")
    own, order = dict(vars(pipe.transformer)), list(pipe.transformer._modules)
    assert measured(pipe, CALL, embedded(1), exported)["mean"] < 90
    assert vars(pipe.transformer) == own and list(pipe.transformer._modules) == order
    assert (CALL(pipe, embedded(1)) == before).all()
