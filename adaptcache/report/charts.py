"""All charts of results: plain numbers in, a figure of matplotlib out. Needs `adaptcache-diffusers[report]`.

Figures have the colours of a light page; `to_svg` turns these into variables of the page that holds it.
"""

from __future__ import annotations

import importlib.util
import io
import itertools
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import quoteattr

import numpy as np

from ..files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Points = Sequence[tuple[float, float]]  # denoiser calls, and decibels

# Names come from strangers: no formulas. Texts stay texts, and one chart always gives the same bytes.
SETTINGS: Any = {"text.parse_math": False, "svg.fonttype": "none", "svg.hashsalt": "adaptcache"}
ON = "#1f5fa8"
THEME = {"#000000": "currentColor", "#ffffff": "var(--paper)", ON: "var(--on)"}
MARKERS = "osD"  # with ten colours: thirty methods look different
MOST = 8  # lines of a Pareto chart
LEAST = 1e-12  # of what is drawn in decades
TIP = "tip: "  # begins the id of what has a text to be shown by a browser


def check_charts() -> None:
    """Raises ImportError where no chart can be drawn: before the work, not after it."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError("charts need matplotlib: pip install 'adaptcache-diffusers[report]'")


@contextmanager
def new_figure(width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    """Gives a new figure and its axes, with sizes in inches."""
    check_charts()
    import matplotlib
    from matplotlib.figure import Figure  # not pyplot: a library leaves no global state behind

    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(width, height), layout="constrained", dpi=150)
        yield figure, figure.subplots()


def build_curve(values: Sequence[float] | np.ndarray, computed: Collection[int], first: int = 0) -> Figure:
    """Draws the values of step `first` and those after it in decades; steps that are computed are filled."""
    with new_figure(6, 2.6) as (figure, axes):
        steps, heights = range(first, first + len(values)), np.clip(values, LEAST, None)
        axes.semilogy(steps, heights, color=ON, linewidth=1.5)
        for step, value in zip(steps, heights, strict=True):
            face, how = (ON, "computed") if step in computed else ("white", "forecast")
            axes.plot(
                step, value, "o", markersize=5, color=ON, markerfacecolor=face,
                gid=f"{TIP}step {step}: {value:.3g}, {how}",
            )  # fmt: skip
        _label_plainly(axes.yaxis, (1, 2, 5) if heights.max() < 1000 * heights.min() else (1,))
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
    return figure


def build_heat_map(distances: np.ndarray) -> Figure:
    """Draws the distances between the outputs of any two steps, with shape (N, N), in decades."""
    from matplotlib.colors import LogNorm

    with new_figure(4.4, 3.6) as (figure, axes):
        norm = LogNorm(1e-4, 1)
        image = axes.imshow(np.clip(distances, 1e-4, 1), "cividis", norm=norm, interpolation="none")
        axes.set(xlabel="step", ylabel="step")
        figure.colorbar(image, label="1 - cosine", format="{x:g}")
    return figure


def build_pareto(lines: Mapping[str, Points], ours: str = "adaptcache") -> Figure:
    """Draws decibels over denoiser calls, a line a method with its name at the end: ours and the best others."""
    chosen = best_lines(lines, ours, MOST)
    looks = itertools.product(MARKERS, [f"C{k}" for k in range(10)])
    with _decibels(9, 5, "denoiser calls (block calls / blocks)") as (figure, axes):
        ends = []
        for method, points in chosen.items():
            style: dict[str, Any] = {"color": "black", "marker": "o", "linewidth": 2.5, "zorder": 3}
            if method != ours:
                marker, colour = next(looks)
                style = {"color": colour, "marker": marker, "linewidth": 1.2, "markersize": 5}
            axes.plot(*zip(*points, strict=True), label=method, **style)
            for calls, value in points:
                tip = f"{TIP}{method}: {value:.1f} dB, {calls:.1f} calls"
                axes.plot(calls, value, gid=tip, **style)
            ends.append((points[-1], method, style["color"]))
        axes.set_xscale("log")
        _label_plainly(axes.xaxis, (1, 2, 3, 5, 7))
        _name_lines(axes, ends)
        if left := len(lines) - len(chosen):
            axes.set_title(f"the best {len(chosen)} of {len(chosen) + left} methods", fontsize=9, loc="right")
    return figure


def best_lines(lines: Mapping[str, Points], ours: str, most: int) -> dict[str, Points]:
    """Returns ours and the best of the other lines, the best first; each line's points by rising calls.

    The best are those with the highest decibels, on average over the calls of all lines, where a line that has no
    point at so few calls counts as its lowest.
    """
    ordered = {method: sorted(points) for method, points in lines.items() if points}
    at = sorted({calls for points in ordered.values() for calls, _ in points})

    def mean(method: str) -> float:
        calls, values = zip(*ordered[method], strict=True)
        return float(np.mean(np.interp(np.log(at), np.log(calls), values)))

    ranked = sorted(ordered, key=lambda method: (method != ours, -mean(method)))
    return {method: ordered[method] for method in ranked[:most]}


def _name_lines(axes: Axes, ends: Sequence[tuple[tuple[float, float], str, str]]) -> None:
    """Writes the name of each line to the right of all, as high as it ends where no other name stands."""
    low, high = axes.get_ylim()
    gap, free = (high - low) / 20, -np.inf
    for (calls, value), name, colour in sorted(ends, key=lambda end: end[0][1]):
        free = max(value, free + gap)
        axes.annotate(
            name, (calls, value), (1.02, free), xycoords="data", textcoords=("axes fraction", "data"), color=colour,
            fontsize=8, va="center", annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "alpha": 0.3},
        )  # fmt: skip


def build_front(lines: Mapping[str, Points], title: str = "", chosen: tuple[float, float] | None = None) -> Figure:
    """Draws decibels over denoiser calls by name: a front first, then what it was calibrated to, then the rest."""
    styles: list[dict[str, Any]] = [
        {"color": "black", "marker": "o", "linewidth": 2},
        {"color": "gray", "marker": ".", "linestyle": ":"},
    ]
    with _decibels(7, 4.5, "denoiser calls") as (figure, axes):
        for (name, points), style in itertools.zip_longest(lines.items(), styles[: len(lines)]):
            axes.plot(*zip(*points, strict=True), label=name, **style or {"marker": "s"})
        if chosen:
            axes.scatter(*chosen, s=160, facecolors="none", edgecolors="red", zorder=4)
        axes.set_title(title, fontsize=10)
        axes.legend(fontsize=8)
    return figure


def write_png(figure: Figure, path: str | Path) -> Path:
    """Writes a figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return write_atomically(path, buffer.getvalue())


def to_svg(figure: Figure, label: str) -> str:
    """Returns a figure as an element of a page, in the page's colours; the label says what it shows."""
    import matplotlib

    buffer, nothing = io.StringIO(), dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context(SETTINGS):
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    svg = re.sub(r' (xmlns(:xlink)?|version)="[^"]*"', "", text[text.index("<svg") :], count=3)
    svg = re.sub("|".join(THEME), lambda found: THEME[found[0]], svg)
    svg = re.sub(rf"""<g id=(["']){TIP}(.*?)\1>""", r"<g><title>\2</title>", svg)
    return svg.replace("<svg", f"<svg role='img' aria-label={quoteattr(label)}", 1)


@contextmanager
def _decibels(width: float, height: float, calls: str) -> Iterator[tuple[Figure, Axes]]:
    with new_figure(width, height) as (figure, axes):
        yield figure, axes
        axes.set(xlabel=calls, ylabel="PSNR against the full run, dB")
        axes.grid(alpha=0.3)


def _label_plainly(axis: Any, at: Sequence[float]) -> None:
    """Labels a logarithmic axis at multiples of powers of ten, without formulas."""
    from matplotlib import ticker

    axis.set_major_locator(ticker.LogLocator(subs=at))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(ticker.NullFormatter())
