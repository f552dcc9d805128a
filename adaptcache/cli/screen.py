"""What verbs put on the screen: progress on stderr, results on stdout."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from ..evaluation.evaluate import Row

__all__ = ["out", "print_json", "print_whole", "progress", "table"]

WIDEST = 400  # columns that a table may take
PIPED = 120  # columns where nobody says how wide the screen is; rich would take 80 and cut tables

out = Console(
    markup=False, highlight=False, soft_wrap=True,  # names and paths may have [brackets]
    width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else PIPED,
)  # fmt: skip


@contextmanager
def progress(shown: bool = True) -> Iterator[Callable[[str, int, int], None]]:
    """Yields a function that is told the stage, what is done and of how much, and draws a bar a stage."""
    if not shown:
        yield lambda stage, done, of: None
        return
    columns = (TextColumn("{task.description:24}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bars = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True))
    tasks: dict[str, Any] = {}

    def report(stage: str, done: int, of: int) -> None:
        if not tasks:
            bars.start()  # not before there is something to draw: an error is to be one line
        if stage not in tasks:
            tasks[stage] = bars.add_task(stage, total=of)
        bars.update(tasks[stage], completed=done, total=of)

    try:
        yield report
    finally:
        if tasks:
            bars.stop()


def table(rows: list[Row], steps: int) -> Table:
    """Returns a table of a comparison."""
    view = Table(box=None, header_style="bold")
    for heading in ("", "budget", "calls", "loop", "pipeline", "PSNR dB", "5th pct", "SSIM"):
        view.add_column(heading, justify="left" if not heading else "right")
    for row in rows:
        full = row.psnr["mean"] >= 100
        view.add_row(
            row.name,
            f"{row.calls / steps:.2f}",
            str(row.calls),
            f"{row.loop:.2f}x",
            f"{row.total:.2f}x",
            "exact" if full else f"{row.psnr['mean']:.1f}",
            "" if full else f"{row.psnr['p05']:.1f}",
            f"{row.ssim['mean']:.4f}" if row.ssim else "-",
        )
    return view


def print_whole(view: Table) -> None:
    """Prints a wide table: narrower screens wrap its lines, none of it is cut off."""
    width = out.width
    out.width = max(width, out.measure(view, options=out.options.update(width=WIDEST)).maximum)
    try:
        out.print(view)
    finally:
        out.width = width


def print_json(data: Any) -> None:
    """Prints one JSON document."""
    print(json.dumps(data, indent=1))
