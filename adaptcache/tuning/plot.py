"""The plot of a front. Needs `adaptcache-diffusers[report]`."""

from __future__ import annotations

from pathlib import Path

from ..report.decibels import decibels
from .front import Front

__all__ = ["draw", "drawable"]


def drawable() -> None:
    """Raises where nothing can be drawn: said before the work, not after it."""
    import importlib.util

    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError("a plot needs matplotlib: pip install 'adaptcache-diffusers[report]'")


def draw(front: Front, path: str | Path) -> Path:
    """Draws decibels over denoiser calls and writes a PNG file."""
    with decibels(path, (7, 4.5)) as axes:
        calls = [point.calls for point in front.points]
        tuned = [point.select["mean"] for point in front.points]
        axes.plot(calls, tuned, color="black", marker="o", linewidth=2, label="tuned, select prompts")
        before = [point.select["mean"] - point.gain for point in front.points]
        axes.plot(calls, before, linestyle=":", marker=".", color="gray", label="calibrate, select prompts")
        seen = [(point.calls, point.schedule.evidence) for point in front.points]
        if held_out := [(count, evidence.psnr) for count, evidence in seen if evidence]:
            counts = [count for count, _ in held_out]
            axes.plot(counts, [psnr["mean"] for _, psnr in held_out], marker="s", label="tuned, held-out")
            axes.plot(
                counts, [psnr["p05"] for _, psnr in held_out], marker="v", label="5th percentile, held-out"
            )
        if front.chosen is not None:
            point = front.points[front.chosen]
            axes.scatter(
                [point.calls], [point.select["mean"]], s=160, facecolors="none", edgecolors="red", zorder=4
            )
        axes.set_title(f"{front.name}: {front.target}", fontsize=10)
    return Path(path)
