"""A plot of decibels over denoiser calls. Needs `adaptcache-diffusers[report]`."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["decibels"]


@contextmanager
def decibels(path: str | Path, size: tuple[float, float], calls: str = "denoiser calls") -> Iterator[Axes]:
    """Gives axes to draw in, then labels them and writes a PNG file.

    Arguments:
        path: The PNG file.
        size: Width and height in inches.
        calls: What is counted along the x axis.
    """
    from matplotlib.figure import Figure  # not pyplot: a library leaves no global state behind

    figure = Figure(figsize=size, layout="constrained", dpi=150)
    axes = figure.subplots()
    yield axes
    axes.set_xlabel(calls)
    axes.set_ylabel("PSNR against the full run, dB")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_atomically(path, buffer.getvalue())
