"""A plot of decibels over denoiser calls. Needs `adaptcache-diffusers[report]`."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["decibels"]


@contextmanager
def decibels(
    path: str | Path, size: tuple[float, float], calls: str = "denoiser calls", beside: bool = False
) -> Iterator[Axes]:
    """Gives axes to draw in, then labels them and writes a PNG file.

    Arguments:
        path: The PNG file.
        size: Width and height in inches.
        calls: What is counted along the x axis.
        beside: Whether the names stand beside the axes: many would hide what is drawn.
    """
    from matplotlib.figure import Figure  # not pyplot: a library leaves no global state behind

    figure = Figure(figsize=size, layout="constrained", dpi=150)
    axes = figure.subplots()
    yield axes
    axes.set_xlabel(calls)
    axes.set_ylabel("PSNR against the full run, dB")
    axes.grid(alpha=0.3)
    place: dict[str, Any] = (
        {"loc": "center left", "bbox_to_anchor": (1.01, 0.5), "frameon": False} if beside else {}
    )
    axes.legend(fontsize=8, **place)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_atomically(path, buffer.getvalue())
