"""The Pareto plot of a comparison, a line a method. Needs `adaptcache-diffusers[report]`."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..report.decibels import decibels
from .compare import OURS
from .line import Line

__all__ = ["draw"]

COLOURS = [f"C{k}" for k in range(10)]
MARKERS = "osD"  # with ten colours: thirty methods look different


def draw(lines: Sequence[Line], path: str | Path) -> Path:
    """Draws decibels over denoiser calls and writes a PNG file; who is best at most calls is named first."""
    found: dict[str, list[tuple[float, float]]] = {}
    for line in lines:
        if line.budget < 1 and line.calls is not None and line.psnr:
            found.setdefault(line.method, []).append((line.calls, line.psnr["mean"]))
    looks = itertools.product(MARKERS, COLOURS)
    with decibels(path, (9, 5), "denoiser calls (block calls / blocks)", beside=True) as axes:
        for method, points in sorted(found.items(), key=lambda item: -max(item[1])[1]):
            if method == OURS:
                style: dict[str, Any] = {"color": "black", "marker": "o", "linewidth": 2.5, "zorder": 3}
            else:
                marker, colour = next(looks)
                style = {"color": colour, "marker": marker, "linewidth": 1.2, "markersize": 5}
            axes.plot(*zip(*sorted(points), strict=True), label=method, **style)
    return Path(path)
