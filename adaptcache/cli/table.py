"""The tables of a comparison: on the screen, and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from ..comparison.compare import OURS
from ..comparison.line import Cost, Line
from ..files import write_atomically

__all__ = ["cost_table", "line_notes", "line_table", "write_markdown"]

Rows = tuple[list[str], list[list[str]]]  # headings, and rows; a row that ends early ends with a note


def line_rows(lines: Sequence[Line], shown: str = "") -> Rows:
    """Returns what methods reached, as text."""
    exact = any(line.exact for line in lines)
    headings = ["budget", "method", "PSNR dB", "5th pct", "SSIM", "latent error"]
    headings += ["to exact dB"] * exact + [shown] * bool(shown) + ["calls", "block calls", "loop", "kept"]
    rows = []
    for line in lines:
        row = [f"{line.budget:g}", line.method]
        if line.note or line.psnr is None or line.memory is None:
            rows.append([*row, line.note])
            continue
        same = line.psnr["mean"] >= 100
        row += ["exact" if same else f"{line.psnr['mean']:.1f}", "" if same else f"{line.psnr['p05']:.1f}"]
        row += [f"{line.ssim['mean']:.4f}" if line.ssim else "-", f"{line.latent:.4f}"]
        row += [f"{line.exact['mean']:.1f}" if line.exact else "-"] * exact
        row += ["-" if line.shown is None else f"{line.shown:.2f}"] * bool(shown)
        row += [f"{line.calls:.1f}", f"{line.blocks:.0f}", f"{line.speed:.2f}x", size(line.memory)]
        rows.append(row)
    return headings, rows


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


def line_table(lines: Sequence[Line], shown: str = "") -> Table:
    """Returns the table of what methods reached; those that reached nothing are in the notes."""
    return screen(line_rows([line for line in lines if not line.note], shown), ("method",))


def line_notes(lines: Sequence[Line]) -> list[str]:
    """Returns a line for each method without numbers somewhere: at which budgets, and why at the first."""
    noted: dict[str, list[Line]] = {}
    for line in lines:
        if line.note:
            noted.setdefault(line.method, []).append(line)
    at = {method: ", ".join(f"{line.budget:g}" for line in some) for method, some in noted.items()}
    return [f"{method} at {at[method]}: {some[0].note}" for method, some in noted.items()]


def cost_table(costs: Sequence[Cost], steps: int) -> Table:
    """Returns the table of what methods cost before their first use."""
    return screen(cost_rows(costs, steps), ("method", "of the calibration"))


def write_markdown(
    path: Path, lines: Sequence[Line], costs: Sequence[Cost], steps: int, shown: str = ""
) -> Path:
    """Writes both tables as Markdown."""
    text = "\n\n".join(map(markdown, (line_rows(lines, shown), cost_rows(costs, steps))))
    return write_atomically(path, (text + "\n").encode())


def markdown(rows: Rows) -> str:
    """Returns a table as Markdown."""
    width = len(rows[0])
    table = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * width]
    for row in rows[1]:
        cells = [f"**{cell}**" if cell == OURS else cell for cell in row]
        table.append("| " + " | ".join([*cells, *[""] * (width - len(cells))]) + " |")
    return "\n".join(table)
