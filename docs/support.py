"""Writes the table of supported pipelines and schedulers: `python -m docs.support`.

Every row is measured, on a tiny pipeline of the true class with random weights (`tests/pipelines`).
"""

from __future__ import annotations

import inspect
import json
import re
import sys
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch._dynamo.utils import counters

import adaptcache
from adaptcache.engines.diffusers.components import FIRST, HOMES, denoisers_of
from adaptcache.forecasts.extrapolate import Extrapolate
from tests.pipelines.setup import Setup
from tests.pipelines.table import MORE, TABLE, built, counted, generated, grid_of, planned, same
from tests.test_schedulers import SCHEDULERS, with_scheduler

PAGE = Path(__file__).with_name("support.md")
MEASURED = Path(__file__).with_name("support_measured.json")
INNER = re.compile(r"self\.(\w*pipe\w*) = \w+Pipeline\(")
VERDICTS = ("works", "fails", "refused", "deprecated", "not built here")
BUDGETS = (0.34, 0.67)
NOT_BUILT = {  # why, of those that tiny random parts could make
    "Kandinsky6SRPipeline": "no tiny parts here: it upscales a decoded video tile by tile",
    "LTX2DFRTemporalRefinePipeline": "needs the latents, keyframes and upsampler of a first pass by LTX2DFRPipeline",
    "RFD4ProteinaPipeline": "no tiny parts here: proteins, their latents stepped by two schedulers",
}
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

NAMES = """\
## Every name

diffusers {version} exports {count} names of pipelines: {counts}. Those that are not in the table above are tiny
pipelines of `tests/pipelines`, or the dummies of diffusers' own tests: *calls* made at two plans, of all, and the same
bits with a plan of all steps; *error*: standard deviations away from the full run, after `calibrate` at half of the
calls. Of random weights no error tells anything about images: it shows that the mechanism works.

"""


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


def measured(name: str) -> dict[str, str]:
    """Measures one of the tiny pipelines that are not in the first table."""
    setup = built(name)
    plain = generated(setup)
    with counted(setup.pipe) as every:
        exact = same(generated(setup), plain)
    steps, made = len(grid_of(setup)), []
    for plan in (range(steps), [i for i in range(steps) if i % 3 != 2], range(0, steps, 2)):
        with adaptcache.attach(setup.pipe, planned(setup, plan)) as handle, counted(setup.pipe) as calls:
            found = generated(setup)
        if exact and len(plan) == steps and not (same(found, plain) or len(every) > steps * setup.branches):
            return {"verdict": "fails", "calls": "", "error": "", "why": "a plan of all steps changes the output"}
        made.append(len(calls))
    schedule = adaptcache.calibrate(
        setup.pipe, setup.prompts[:2], setup.steps, budget=0.5, pipe_kwargs=setup.call, progress=False
    )
    full = generated(setup, sample=2)
    with adaptcache.attach(setup.pipe, schedule) as handle:
        found = generated(setup, sample=2)
    pairs = [(a.float(), b.float()) for a, b in zip(found, full, strict=True)]
    away = max((float((a - b).square().mean() / b.var()) ** 0.5 for a, b in pairs if b.numel() > 1), default=0)
    loops = "several loops in a call" if schedule.made.get("several_loops") else ""
    assert handle.report().evidence == "calibrated", handle.report()
    calls = f"{made[1]} or {made[2]} of {len(every)}"
    return {"verdict": "works", "calls": calls, "error": f"{away:.1e}", "why": loops}


def measure_more() -> None:
    """Measures the tiny pipelines that are not in the first table, and keeps the figures."""
    kept = json.loads(MEASURED.read_text(encoding="utf-8"))
    for name in MORE:
        kept[name] = measured(name)
        print(name, kept[name], flush=True)
    MEASURED.write_text(json.dumps(kept, indent=1, sort_keys=True), encoding="utf-8")


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


def exported() -> dict[str, Any]:
    """Returns all that diffusers exports as a pipeline, by name: classes, and stand-ins for what is not installed."""
    found = {name: getattr(diffusers, name, None) for name in sorted(dir(diffusers)) if name.endswith("Pipeline")}
    return {name: kind for name, kind in found.items() if inspect.isclass(kind)}


def row_of(name: str, kind: Any, here: Mapping[str, list[str]], elsewhere: Mapping[str, dict[str, str]]) -> list[str]:
    """Returns name, verdict, calls, error and what else there is to say of an exported name.

    Arguments:
        name: The name.
        kind: Its class.
        here: Rows of the first table, by class.
        elsewhere: What was measured on the dummies of diffusers' own tests, by class.
    """
    if name in here:
        return [f"`{name}`", "works", here[name][4], here[name][6], "see above"]
    if (known := elsewhere.get(name)) and known["verdict"] == "works":
        return [f"`{name}`", "works", known["calls"], known["error"], known["why"]]
    if why := refusal(kind):
        return [f"`{name}`", "refused", "", "", why]
    if known:
        return [f"`{name}`", known["verdict"], known["calls"], known["error"], known["why"]]
    if any(base.__name__ == "DeprecatedPipelineMixin" for base in kind.__mro__) or ".deprecated." in kind.__module__:
        return [f"`{name}`", "deprecated", "", "", "diffusers no longer maintains or tests it"]
    if packages := getattr(kind, "_backends", None):
        return [f"`{name}`", "not built here", "", "", f"needs {', '.join(packages)}"]
    if kind in (diffusers.DiffusionPipeline, diffusers.ModularPipeline):
        return [f"`{name}`", "not built here", "", "", "a base class"]
    return [f"`{name}`", "not built here", "", "", NOT_BUILT.get(name, "no tiny parts here")]


def refusal(kind: Any) -> str:
    """Returns why `attach` refuses every pipeline of a class; "" where its parts do not tell."""
    if kind is diffusers.DiffusionPipeline or hasattr(kind, "_backends"):
        return ""
    if blocks := getattr(kind, "default_blocks_name", None):
        specs = getattr(diffusers, blocks)().expected_components
        parts, kinds = {spec.name for spec in specs}, " ".join(str(spec.type_hint) for spec in specs)
    else:
        parts = set(inspect.signature(kind.__init__).parameters)
        kinds = " ".join(str(one) for one in inspect.get_annotations(kind.__init__).values())
    if issubclass(kind, diffusers.ModularPipeline) and not blocks:
        return ""
    if inner := INNER.findall(inspect.getsource(kind.__init__)):
        return f"runs other pipelines: use {' or '.join(inner)}"
    if not any("scheduler" in part for part in parts):
        return "has no scheduler"
    denoises = parts & set(FIRST) or any(home in kinds for home in HOMES) or "prior" in parts or "decoder" in parts
    return "" if denoises else "has no denoiser"


def names_table(here: Mapping[str, list[str]]) -> str:
    """Returns the section of the page that has a row for every exported name."""
    elsewhere = json.loads(MEASURED.read_text(encoding="utf-8"))
    rows = [row_of(name, kind, here, elsewhere) for name, kind in exported().items()]
    counts = Counter(row[1] for row in rows)
    says = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict])
    text = NAMES.format(count=len(rows), version=diffusers.__version__, counts=says)
    return text + table(["name", "verdict", "calls", "error", ""], rows)


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
    measure_more()
    write_names(page)


def write_names(page: str) -> None:
    """Writes the page with the section of names made anew, from the rows that its first table has."""
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.count(" | ") == 7]
    here = {row[1].strip("`"): row for row in reversed(rows) if row[1].startswith("`")}
    PAGE.write_text(page.split("\n## Every name")[0].rstrip() + "\n\n" + names_table(here), encoding="utf-8")


if __name__ == "__main__":
    write_names(PAGE.read_text(encoding="utf-8")) if sys.argv[1:] == ["--names"] else main()
