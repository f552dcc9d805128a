"""`adaptcache report`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..files import check_writable
from ..report import write_report
from ..schedule import Schedule
from .screen import out

__all__ = ["report"]


def report(
    schedule: Annotated[Path, typer.Argument(help="A schedule file.")],
    to: Annotated[Path | None, typer.Option("--out", "-o", help="[default: next to it, .html]")] = None,
    comparison: Annotated[
        Path | None, typer.Option(help="A folder that `adaptcache compare --out` wrote.")
    ] = None,
    show: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
) -> None:
    """Write a page about a schedule: one HTML file that works offline.

    Example:  adaptcache report schedules/emoji-flux-28-2.8x.json --open
    """
    target = check_writable(to or schedule.with_suffix(".html"))
    write_report(Schedule.load(schedule), target, comparison)
    out.print(f"wrote {target}")
    if show:
        typer.launch(target.resolve().as_uri())
