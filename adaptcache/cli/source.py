"""Where a schedule comes from on the command line: the same words everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..hub import from_pretrained
from ..schedule.schedule import Schedule

__all__ = ["Source", "loaded"]

Source = Annotated[str, typer.Argument(help="A schedule: a file, a folder or user/repo.")]


def loaded(source: str) -> Schedule:
    """Loads a schedule from a file, a folder or the hub."""
    path = Path(source).expanduser()
    return Schedule.load(path) if path.suffix == ".json" or path.is_file() else from_pretrained(source)
