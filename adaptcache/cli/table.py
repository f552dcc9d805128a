"""The tables of a comparison: on the screen, and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from ..comparison import OURS, Cost, MethodResult
from ..files import write_atomically

__all__ = ["cost_table", "notes_of", "result_table", "write_markdown"]

Rows = tuple[list[str], list[list[str]]]  # headings, and rows; a row that ends early ends with a note


def result_rows(results: Sequence[MethodResult], shown: str = "") -> Rows:
    """Returns what methods reached, as text."""
    exact = any(one.exact for one in results)
    headings = ["budget", "method", "PSNR dB", "5th pct", "SSIM", "latent error"]
    headings += ["to exact dB"] * exact + [shown] * bool(shown) + ["lead", "calls", "block calls", "loop", "kept"]
    rows = []
    for one in results:
        row = [f"{one.budget:g}", one.method]
        if one.note or one.psnr is None or one.memory is None:
            rows.append([*row, one.note])
            continue
        same = one.psnr["mean"] >= 100
        row += ["exact" if same else f"{one.psnr['mean']:.1f}", "" if same else f"{one.psnr['p05']:.1f}"]
        row += [f"{one.ssim['mean']:.4f}" if one.ssim else "-", f"{one.latent:.4f}"]
        row += [f"{one.exact['mean']:.1f}" if one.exact else "-"] * exact
        row += ["-" if one.caption_score is None else f"{one.caption_score:.2f}"] * bool(shown)
        row += [lead(one)]
        row += [calls(one), f"{one.blocks:.0f}", f"{one.speed:.2f}x", size(one.memory)]
        rows.append(row)
    return headings, rows


def lead(one: MethodResult) -> str:
    """Returns by how many decibels our schedule is ahead, with its 95 % confidence interval."""
    if not one.lead or one.lead.get("mean") is None:
        return ""
    half = one.lead.get("ci95")
    return f"{one.lead['mean']:+.1f}" + (f" ± {half:.1f}" if half is not None else "")


def calls(one: MethodResult) -> str:
    """Returns the calls of a method; of those with a probe also without it."""
    return f"{one.calls:.1f}" + (f" ({one.unprobed:.1f} without probe)" if one.unprobed is not None else "")


def cost_rows(costs: Sequence[Cost], steps: int) -> Rows:
    """Returns what methods cost before their first use, as text."""
    rows = []
    for cost in costs:
        calls = sum(cost.calibration.values())
        parts = ", ".join(f"{stage} {work:.0f}" for stage, work in cost.calibration.items())
        total = calls + cost.settings
        row = [
            cost.method,
            f"{calls:.0f}",
            str(cost.tried or ""),
            f"{cost.settings:.0f}",
            f"{total / steps:.0f}",
        ]
        rows.append([*row, parts if len(cost.calibration) > 1 else ""])
    return ["method", "calibration", "settings", "their calls", "in full runs", "of the calibration"], rows


def size(count: int) -> str:
    """Returns bytes as people write them."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count = round(count / 1000) if count >= 10_000 else count // 100 / 10  # type: ignore[assignment]
    return f"{count:.3g} GB"


def screen(rows: Rows, left: Sequence[str]) -> Table:
    """Returns a table for the screen; our own rows are bold."""
    view = Table(box=None, header_style="bold")
    for heading in rows[0]:
        view.add_column(heading, justify="left" if heading in left else "right", no_wrap=True)
    for row in rows[1]:
        view.add_row(*(Text(cell, "bold" if cell == OURS else "") for cell in row))
    return view


def result_table(results: Sequence[MethodResult], shown: str = "") -> Table:
    """Returns the table of what methods reached; those that reached nothing are in the notes."""
    return screen(result_rows([one for one in results if not one.note], shown), ("method",))


def notes_of(results: Sequence[MethodResult]) -> list[str]:
    """Returns a line for each method without numbers somewhere: at which budgets, and why at the first."""
    noted: dict[str, list[MethodResult]] = {}
    for one in results:
        if one.note:
            noted.setdefault(one.method, []).append(one)
    at = {method: ", ".join(f"{one.budget:g}" for one in some) for method, some in noted.items()}
    return [f"{method} at {at[method]}: {some[0].note}" for method, some in noted.items()]


def cost_table(costs: Sequence[Cost], steps: int) -> Table:
    """Returns the table of what methods cost before their first use."""
    return screen(cost_rows(costs, steps), ("method", "of the calibration"))


def write_markdown(
    path: Path, results: Sequence[MethodResult], costs: Sequence[Cost], steps: int, shown: str = ""
) -> Path:
    """Writes both tables as Markdown."""
    text = "\n\n".join(map(markdown, (result_rows(results, shown), cost_rows(costs, steps))))
    return write_atomically(path, (text + "\n").encode())


def markdown(rows: Rows) -> str:
    """Returns a table as Markdown."""
    width = len(rows[0])
    table = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * width]
    for row in rows[1]:
        cells = [f"**{cell}**" if cell == OURS else cell for cell in row]
        table.append("| " + " | ".join([*cells, *[""] * (width - len(cells))]) + " |")
    return "\n".join(table)
