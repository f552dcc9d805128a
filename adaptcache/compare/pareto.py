"""The Pareto plot of a comparison, a line a method. Needs `adaptcache-diffusers[report]`."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from ..files import write_atomically
from . import OURS, Line

__all__ = ["draw"]


def draw(lines: Sequence[Line], path: str | Path) -> Path:
    """Draws decibels over denoiser calls and writes a PNG file."""
    from matplotlib.figure import Figure  # not pyplot: a library leaves no global state behind

    figure = Figure(figsize=(8, 5), layout="constrained", dpi=150)
    axes = figure.subplots()
    for method in dict.fromkeys(line.method for line in lines if line.budget < 1):
        points = sorted((line.calls, line.psnr["mean"]) for line in lines
                        if line.method == method and line.calls is not None and line.psnr)  # fmt: skip
        if points:
            ours = method == OURS
            style = {"color": "black", "linewidth": 2.5, "zorder": 3} if ours else {"linewidth": 1.2}
            axes.plot(*zip(*points, strict=True), marker="o", label=method, **style)
    axes.set_xlabel("denoiser calls (block calls / blocks)")
    axes.set_ylabel("PSNR against the full run, dB")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return write_atomically(path, buffer.getvalue())
