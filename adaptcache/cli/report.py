"""`adaptcache report`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from .files import Source, load_schedule, wrote
from .screen import out


def report(
    schedule: Source,
    to: Annotated[Path | None, Option("--out", "-o", help="\\[default: NAME.html, next to a file]")] = None,
    comparison: Annotated[Path | None, Option(help="What `adaptcache compare --out` wrote.")] = None,
    show: Annotated[bool, Option("--open", help="Open it in the browser.")] = False,
) -> None:
    """Write a page about a schedule: one HTML file that works offline.

    Example:  adaptcache report schedules/emoji-flux-28-2.8x.json --open
    """
    from ..files import check_writable
    from ..report import write_report

    described, path = load_schedule(schedule), Path(schedule)
    beside = path.with_suffix(".html") if path.is_file() else Path(f"{described.name}.html")
    target = check_writable(to or beside)
    said = wrote(target)
    write_report(described, target, comparison)
    out.print(said)
    if show:
        typer.launch(target.resolve().as_uri())
