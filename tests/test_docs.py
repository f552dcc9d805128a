"""The documentation: every Python example runs, every command line parses, every link leads somewhere."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer.main
import yaml
from conftest import STEPS, embedded, tiny_flux
from diffusers import FluxPipeline
from test_export import kernel

from adaptcache.cli import app
from adaptcache.cli.export import export, push
from adaptcache.schedule.format import Kernel
from adaptcache.schedule.schedule import Schedule

DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted(set(DOCS.glob("*.md")) - {DOCS / "support_notes.md"})  # a part of support.md


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


def speaking() -> FluxPipeline:
    """A tiny pipeline whose text encoder is a table: the text decides the noise it gives."""
    pipe = tiny_flux()

    def encode_prompt(prompt: Any = None, prompt_embeds: Any = None, **_: Any) -> tuple[Any, Any, Any]:
        texts = [prompt] if isinstance(prompt, str) else prompt
        rows = [embedded(1, seed=sum(map(ord, text)))[0] for text in texts]
        words = torch.cat([row["prompt_embeds"] for row in rows])
        return words, torch.cat([row["pooled_prompt_embeds"] for row in rows]), torch.zeros(words.shape[1], 3)

    pipe.encode_prompt = encode_prompt
    return pipe


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """What an example may take for granted: `pipe` and `schedule`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(FluxPipeline, "from_pretrained", lambda *_, **__: speaking())
    from conftest import schedule_of

    pipe = speaking()
    carried: Kernel = kernel(steps=STEPS)
    schedule: Schedule = schedule_of(pipe, [0, 1, 4]).model_copy(update={"kernel": carried})
    yield {"pipe": pipe, "schedule": schedule}


@pytest.mark.filterwarnings("ignore:.*was fitted:UserWarning")
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.stem)
def test_the_examples_of_a_page_run_from_top_to_bottom(page: Path, given: dict[str, Any]) -> None:
    for number, code in enumerate(blocks(page, "python")):
        small = code.replace("1024", "16").replace("torch.cuda.is_available()", "False")  # a tiny model, on a CPU
        exec(compile(small, f"{page.name}, example {number}", "exec"), given)


def commands() -> list[str]:
    lines = [line for page in PAGES for block in blocks(page, "sh") for line in block.splitlines()]
    return sorted({line for line in lines if line.startswith("adaptcache ")})


@pytest.mark.parametrize("line", commands())
def test_every_command_line_is_one_that_the_program_takes(line: str) -> None:
    _, verb, *words = shlex.split(line, comments=True)
    verbs = dict(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    for function in (export, push):
        one = typer.Typer()
        one.command()(function)
        verbs.setdefault(function.__name__, typer.main.get_command(one))
    context = verbs[verb].make_context(verb, words)
    assert context.params


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_link_leads_to_a_page_that_is_in_the_navigation(page: Path) -> None:
    groups = yaml.safe_load((DOCS.parent / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    assert page.name in [name for group in groups for entry in next(iter(group.values())) for name in entry.values()]
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (DOCS / target).is_file(), target


def test_the_reference_names_what_there_is() -> None:
    for path in re.findall(r"^::: ([\w.]+)", (DOCS / "reference.md").read_text(encoding="utf-8"), re.M):
        module, _, name = path.rpartition(".")
        try:
            assert hasattr(__import__(module, fromlist=["_"]), name), path
        except ModuleNotFoundError:
            __import__(path)
