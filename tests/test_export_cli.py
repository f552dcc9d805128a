"""`adaptcache export`, as a person types it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from conftest import CALL, STEPS, embedded, schedule_of, tiny_flux
from test_export import ENGINES, kernel, schedule, suited
from typer.testing import CliRunner

from adaptcache.cli.export import export, measure_export
from adaptcache.engines.formats import Exported, apply_export
from adaptcache.engines.formats import export as form
from adaptcache.runs import PipelineCall, PromptSet, Setup
from adaptcache.schedule.schedule import Schedule

app = typer.Typer()
app.command()(export)


def typed(*words: object) -> str:
    result = CliRunner().invoke(app, list(map(str, words)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return schedule([0, 2, 5], kernel()).save(tmp_path / "mine.json")


def test_export_writes_the_file_and_says_what_is_lost(saved: Path, tmp_path: Path) -> None:
    target = tmp_path / "plan.yaml"
    said = typed(saved, "--to", "cache-dit", "--out", target)
    assert target.read_text() == form(Schedule.load(saved), "cache-dit").text
    assert f"wrote {target}" in said and "lost" in said and "predicted" in said
    assert f'load_configs("{target}")' in said


@pytest.mark.parametrize("engine", ENGINES)
def test_export_names_its_file_after_the_schedule_and_the_engine(
    engine: str, saved: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    suited(engine, Schedule.load(saved)).save(saved)
    said = json.loads(typed(saved, "--to", engine, "--json", *([] if engine == "table" else ["--calls", 4])))
    assert said["out"].startswith(f"mine.{engine}.") and Path(said["out"]).is_file()
    assert sum(said["mask"]) == 4 or engine in ("tensorrt-llm", "comfyui-teacache", "table")
    assert said["measured"] is None and said["version"]


def test_export_refuses_before_it_works(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(LookupError, match="no format 'comfy'"):
        typed(saved, "--to", "comfy")
    with pytest.raises(LookupError, match="sglang does not run here"):
        typed(saved, "--to", "sglang", "--eval-on", 2, "--out", tmp_path / "x.json")
    assert not (tmp_path / "x.json").exists()
    with pytest.raises(LookupError, match=r"no gear 3"):
        typed(saved, "--to", "xdit", "--gear", 3)


def measured(pipe: Any, count: int, exported: Exported, progress: Any = lambda *_: None) -> dict[str, float]:
    from adaptcache.engines.diffusers.engine import DiffusersEngine

    call = PipelineCall(STEPS, {"height": 16, "width": 16})
    setup = Setup(DiffusersEngine(pipe, exclusive=True), call, progress=progress)
    return measure_export(exported, pipe, setup, PromptSet(tuple(embedded(count))))


def test_what_is_measured_is_the_engine_and_the_pipeline_is_left_as_it_was() -> None:
    pipe = tiny_flux(num_layers=2)
    before = CALL(pipe, embedded(1))
    worse = form(schedule_of(pipe, [0]), "diffusers")
    all_steps = form(schedule_of(pipe, list(range(STEPS))), "diffusers")
    told: list[Any] = []
    exact = measured(pipe, 2, all_steps, lambda *what: told.append(what))
    assert exact == {"mean": 100.0, "p05": 100.0}
    assert told == [(stage, done, 2) for stage in ("full run", "in diffusers") for done in (1, 2)]
    assert measured(pipe, 2, worse)["mean"] < 60
    assert (CALL(pipe, embedded(1)) == before).all()
    with (
        pytest.raises(LookupError, match="xdit does not run here"),
        apply_export(pipe, form(schedule([0]), "xdit")),
    ):
        pass


def test_cache_dit_can_be_measured() -> None:
    pytest.importorskip("cache_dit")
    pipe = tiny_flux(num_layers=2)
    before = CALL(pipe, embedded(1))
    exported = form(schedule_of(pipe, [0, 1, 4]), "cache-dit")
    own, order = dict(vars(pipe.transformer)), list(pipe.transformer._modules)
    assert measured(pipe, 1, exported)["mean"] < 90
    assert vars(pipe.transformer) == own and list(pipe.transformer._modules) == order
    assert (CALL(pipe, embedded(1)) == before).all()
