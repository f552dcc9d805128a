"""Writes the table of supported pipelines and schedulers: `python -m docs.support`.

Every row is measured, on a tiny pipeline of the true class with random weights (`tests/pipelines`).
"""

from __future__ import annotations

import inspect
import warnings
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch._dynamo.utils import counters

import adaptcache
from adaptcache.engines.diffusers.components import FIRST, HOMES, denoisers_of
from adaptcache.forecasts.extrapolate import Extrapolate
from tests.pipelines.setup import Setup
from tests.pipelines.table import TABLE, built, counted, generated, grid_of, planned
from tests.test_schedulers import SCHEDULERS, with_scheduler

PAGE = Path(__file__).with_name("support.md")
BUDGETS = (0.34, 0.67)
INTRODUCTION = """\
# What adaptcache runs on

<!-- Written by `python -m docs.support`; edit docs/support.py instead. -->

Every pipeline below is built from its true diffusers {version} classes, with tiny random weights, and run
through its real `__call__`. *Calls*: denoiser calls made / calls of a full run, counted at the denoiser's
`forward`, for a plan that skips every third step. *Exact*: a plan of all steps returns the same bits as no
schedule. *Error*: squared error of the latents over their variance, on noise and a prompt that were not
calibrated on, after `adaptcache.calibrate` at budgets {budgets}. *Compiled*: graphs that
`transformer.compile()` makes, all of which are made without adaptcache too. Random weights show that the
mechanism works; they do not show how good images of a trained model are.
"""


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    """Whether two results are the same to the bit."""
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def error(setup: Setup, schedule: adaptcache.Schedule, truth: list[torch.Tensor]) -> float:
    """Returns the relative squared error of a sample that was not calibrated on."""
    with adaptcache.attach(setup.pipe, schedule):
        made = generated(setup, sample=2)
    errors = [float((a - b).square().mean() / b.var()) for a, b in zip(made, truth, strict=True)]
    return sum(errors) / len(errors)


def graphs(name: str, attached: bool) -> tuple[int, int]:
    """Returns the graphs and graph breaks of a compiled run."""
    setup = built(name)
    schedule = planned(setup, [0, 2])
    torch._dynamo.reset()
    counters.clear()
    for denoiser in denoisers_of(setup.pipe):
        denoiser.compile(backend="eager")
    if attached:
        with adaptcache.attach(setup.pipe, schedule):
            generated(setup)
    else:
        generated(setup)
    return counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())


def pipeline_row(name: str) -> list[str]:
    """Measures one pipeline."""
    setup = built(name)
    plain = generated(setup)
    steps = len(grid_of(setup))
    with adaptcache.attach(setup.pipe, planned(setup, range(steps))):
        exact = same(generated(setup), plain)
    plan = [i for i in range(steps) if i % 3 != 2]
    with adaptcache.attach(setup.pipe, planned(setup, plan)), counted(setup.pipe) as made:
        generated(setup)
    right = len(made) == len(plan) * setup.branches
    truth, errors = generated(setup, sample=2), []
    for budget in BUDGETS:
        schedule = adaptcache.calibrate(
            setup.pipe, setup.prompts[:2], setup.steps, budget=budget, pipe_kwargs=setup.call, progress=False
        )
        errors.append(f"{error(setup, schedule, truth):.0e}")
    alone, attached = graphs(name, False), graphs(name, True)
    return [
        name,
        f"`{type(setup.pipe).__name__}`",
        f"`{type(setup.pipe.scheduler).__name__}`",
        str(setup.branches),
        f"{len(made)} / {steps * setup.branches}" + ("" if right else " (wrong)"),
        "yes" if exact else "**no**",
        ", ".join(errors),
        f"{attached[0]}" if attached == alone else f"{attached} instead of {alone} (graphs, breaks)",
    ]


def scheduler_row(name: str) -> list[str]:
    """Measures one scheduler."""
    setup = with_scheduler(name)
    plain = generated(setup)
    steps = len(grid_of(setup))
    with adaptcache.attach(setup.pipe, planned(setup, range(steps))):
        exact = same(generated(setup), plain)
    schedule = adaptcache.calibrate(
        setup.pipe, setup.prompts[:2], setup.steps, budget=0.5, pipe_kwargs=setup.call, progress=False
    )
    plan = schedule.rules[0].policy.steps(schedule.grid.times)
    truth = generated(setup, sample=2)
    errors = [error(setup, s, truth) for s in (schedule, planned(setup, plan, Extrapolate(order=0)))]
    scheduler = f"`{type(setup.pipe.scheduler).__name__}`"
    return [name, scheduler, str(steps), "yes" if exact else "**no**", *(f"{e:.0e}" for e in errors)]


def table(head: list[str], rows: list[list[str]]) -> str:
    """Returns a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def unsupported() -> list[list[str]]:
    """Returns the pipelines of diffusers that `attach` refuses, and why."""
    rows = []
    for name in sorted(dir(diffusers)):
        found: Any = getattr(diffusers, name, None)
        if not inspect.isclass(found) or not issubclass(found, diffusers.DiffusionPipeline):
            continue
        parts = set(inspect.signature(found.__init__).parameters)
        kinds = " ".join(str(kind) for kind in inspect.get_annotations(found.__init__).values())
        denoises = parts & set(FIRST) or any(home in kinds for home in HOMES)
        if found is diffusers.DiffusionPipeline or ("scheduler" in parts and denoises):
            continue
        has = "no scheduler" if "scheduler" not in parts else "no denoiser"
        rows.append([f"`{name}`", has])
    return rows


def main() -> None:
    """Measures everything and writes the page."""
    warnings.simplefilter("ignore")
    pipelines = []
    for name in TABLE:
        pipelines.append(pipeline_row(name))
        print(" | ".join(pipelines[-1]))
    schedulers = [scheduler_row(name) for name in SCHEDULERS]
    budgets = " and ".join(map(str, BUDGETS))
    page = INTRODUCTION.format(version=diffusers.__version__, budgets=budgets) + "\n## Pipelines\n\n"
    head = ["", "class", "scheduler", "branches", "calls", "exact", "error", "compiled"]
    page += table(head, pipelines)
    page += "\n## Schedulers\n\nErrors at half of the calls, with the same plan.\n\n"
    head = ["", "class", "steps of 8", "exact", "matched weights", "plain reuse"]
    page += table(head, schedulers)
    page += "\n" + Path(__file__).with_name("support_notes.txt").read_text(encoding="utf-8")
    page += "\n" + table(["refused by `attach`", "as it has"], unsupported())
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
