"""The Pareto plot of a comparison, a line a method. Needs `adaptcache-diffusers[report]`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..report.decibels import decibels
from . import OURS, Line

__all__ = ["draw"]


def draw(lines: Sequence[Line], path: str | Path) -> Path:
    """Draws decibels over denoiser calls and writes a PNG file."""
    with decibels(path, (8, 5), "denoiser calls (block calls / blocks)") as axes:
        for method in dict.fromkeys(line.method for line in lines if line.budget < 1):
            points = sorted((line.calls, line.psnr["mean"]) for line in lines
                            if line.method == method and line.calls is not None and line.psnr)  # fmt: skip
            if points:
                ours = method == OURS
                style = {"color": "black", "linewidth": 2.5, "zorder": 3} if ours else {"linewidth": 1.2}
                axes.plot(*zip(*points, strict=True), marker="o", label=method, **style)
    return Path(path)
