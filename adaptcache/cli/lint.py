"""`adaptcache lint`"""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from . import options as opt
from .screen import out, print_json, printable

COLOURS = {"error": "red", "warning": "yellow"}


def lint(
    schedule: Annotated[Path, typer.Argument(help="A schedule, or settings of another engine.")],
    profile: Annotated[Path | None, typer.Option(help="Score it on this profile, and find its cliffs.")] = None,
    json: opt.Json = False,
) -> None:
    """Say what is wrong with a schedule: inert thresholds, cliffs, polynomials that fall or are negative.

    Ends with 1 where there are errors.

    Example:  adaptcache lint teacache.json
    """
    from ..engines.formats.read import read_schedule
    from ..engines.lint import lint as find_faults
    from ..profile import Profile

    found = find_faults(read_schedule(schedule), Profile.load(profile) if profile else None)
    if json:
        print_json([asdict(fault) for fault in found])
    for fault in () if json else found:
        out.print(Text.assemble((fault.level, COLOURS[fault.level]), printable(f" {fault.code}: {fault.message}")))
    if not (json or found):
        out.print(f"{schedule}: nothing found")
    if any(fault.level == "error" for fault in found):
        raise typer.Exit(1)
