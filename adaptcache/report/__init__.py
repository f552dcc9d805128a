"""One HTML file about a schedule: what it does, how good it is, where it came from.

Needs `adaptcache-diffusers[report]`.
"""

from __future__ import annotations

import importlib.resources
from pathlib import Path
from typing import Any

from ..files import write_atomically
from ..policies.plan import Plan
from ..schedule.schedule import Schedule
from .compared import comparison_of
from .curves import change_curve, error_curve, heat_map

__all__ = ["report", "write_report"]


def write_report(schedule: Schedule, path: str | Path, comparison: str | Path | None = None) -> Path:
    """Writes the report of a schedule.

    Arguments:
        schedule: What it is about.
        path: The HTML file.
        comparison: A folder that `adaptcache compare --out` wrote, for its table, plots and images.
    """
    return write_atomically(path, report(schedule, comparison).encode())


def report(schedule: Schedule, comparison: str | Path | None = None) -> str:
    """Returns the report of a schedule: one page that asks for nothing from elsewhere."""
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError:
        raise ImportError("reports need jinja2: pip install 'adaptcache-diffusers[report]'") from None

    text = (importlib.resources.files(__package__) / "page.html.j2").read_text(encoding="utf-8")
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    kernel, strips = schedule.kernel, _strips(schedule)
    computed = [cell["index"] for cell in strips[0]["cells"] if cell["computed"]] if strips else []
    calls = schedule.evidence.calls[0] if schedule.evidence else len(computed)
    evidence = schedule.evidence
    return page.from_string(text).render(
        schedule=schedule,
        strips=strips,
        errors=error_curve(kernel, computed) if kernel else None,
        changes=change_curve(kernel, computed) if kernel and len(kernel.times) > 1 else None,
        heat=heat_map(kernel) if kernel else None,
        forecast=schedule.rules[0].forecast.model_dump(exclude={"table"}),
        certificate=evidence.certificate.sentence if evidence and evidence.certificate else None,
        verdict=evidence.verdict if evidence else None,
        comparison=comparison_of(Path(comparison), calls) if comparison else None,
    )


def _strips(schedule: Schedule) -> list[dict[str, Any]]:
    """Returns, for each gear, which steps are computed and at what times."""
    policy, times = schedule.rules[0].policy, schedule.grid.times
    if not isinstance(policy, Plan):
        return []
    strips = []
    for number, gear in enumerate(policy.gears):
        chosen = policy.steps(times, number)
        cells = [{"index": i, "t": f"{t:.3f}", "computed": i in chosen} for i, t in enumerate(times)]
        strips.append({"budget": gear.budget, "cells": cells, "calls": len(chosen)})
    return strips
