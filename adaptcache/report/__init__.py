"""One HTML file about a schedule: what it does, how good it is, where it came from.

Needs `adaptcache-diffusers[report]`.
"""

from __future__ import annotations

import base64
import importlib.resources
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import ScheduleError
from ..files import write_atomically
from ..policies.plan import Plan
from ..schedule import Kernel, Schedule

__all__ = ["report", "write_report"]

DARKEST = 4.0  # decades of difference that the heat map spans


def write_report(schedule: Schedule, path: str | Path, comparison: str | Path | None = None) -> Path:
    """Writes the report of a schedule.

    Arguments:
        schedule: What it is about.
        path: The HTML file.
        comparison: A folder that `adaptcache compare --out` wrote, for its table and images.
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
    return page.from_string(text).render(
        schedule=schedule,
        strips=_strips(schedule),
        curve=_curve(schedule.kernel) if schedule.kernel else None,
        heat=_heat(schedule.kernel) if schedule.kernel else None,
        forecast=schedule.rules[0].forecast.model_dump(exclude={"table"}),
        comparison=_comparison(Path(comparison)) if comparison else None,
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


def _curve(kernel: Kernel, width: int = 640, height: int = 200) -> dict[str, Any]:
    """Returns the points of the output-error curve, in decades, for an SVG of this size."""
    logs = [math.log10(max(value, 1e-12)) for value in kernel.sensitivity]
    low, high = math.floor(min(logs)), math.ceil(max(logs))
    high += low == high

    def place(index: int, value: float) -> tuple[float, float]:
        across = 50 + index * (width - 60) / max(1, len(logs) - 1)
        return round(across, 1), round(10 + (high - value) * (height - 40) / (high - low), 1)

    decades = [(place(0, d)[1], d) for d in range(low, high + 1)]
    points = [
        (*place(i, v), i, value) for i, (v, value) in enumerate(zip(logs, kernel.sensitivity, strict=True))
    ]
    return {"width": width, "height": height, "decades": decades, "points": points}


def _heat(kernel: Kernel) -> str:
    """Returns a picture of how far the outputs of any two steps are apart, a pixel a pair."""
    gram = np.array(kernel.gram)
    size = np.sqrt(np.clip(np.diag(gram), 1e-30, None))
    apart = np.clip(1 - gram / np.outer(size, size), 10**-DARKEST, 1)
    share = 1 + np.log10(apart)[..., None] / DARKEST  # 0 where alike, 1 where unrelated
    near, far = np.array([20, 60, 120]), np.array([250, 225, 160])
    return _uri(Image.fromarray((near + share * (far - near)).astype(np.uint8)))


def _uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _comparison(folder: Path) -> dict[str, Any]:
    """Returns the numbers of a comparison, with its images put into the page."""
    try:
        data: dict[str, Any] = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
        names = {label: list(files) for label, files in data.get("images", {}).items()}
        lines, prompts = list(data["lines"]), list(data["prompts"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ScheduleError(
            f"{folder} is no comparison ({error}); `adaptcache compare --out {folder}` writes one"
        ) from None
    full, rows = names.pop("full run", []), []
    for number, (prompt, truth) in enumerate(zip(prompts, full, strict=False)):
        others = [(label, _file(folder, files[number])) for label, files in names.items()]
        rows.append({"prompt": prompt, "full": _file(folder, truth), "others": others})
    return {"lines": lines, "rows": rows, "held_out": data["held_out"], "swept": data["swept"]}


def _file(folder: Path, name: str) -> str:
    path = (folder / name).resolve()
    if folder.resolve() not in path.parents:  # the JSON may be a stranger's
        raise ScheduleError(f"{name} lies outside of {folder}")
    with Image.open(path) as image:
        return _uri(image.convert("RGB"))
