"""`adaptcache lint`: what is wrong with a schedule, or with another code's numbers."""

from __future__ import annotations

import json as json_
from dataclasses import asdict
from pathlib import Path

__all__ = ["lint"]


def lint(schedule: Path, profile: Path | None = None, json: bool = False) -> int:
    """Looks for inert thresholds, cliffs, bad polynomials; returns how many errors there are.

    Arguments:
        schedule: A schedule, or a file of another code (`adaptcache.imports`).
        profile: A profile of the pipeline it is for: scores the numbers on it.
        json: Print JSON.
    """
    from rich.console import Console

    from ..errors import ScheduleError
    from ..imports import imported
    from ..lint import lint as findings_of
    from ..profile import Profile
    from ..schedule import Schedule

    try:
        read = Schedule.load(schedule)
    except ScheduleError as error:
        if "is not a schedule" not in str(error) and "is not JSON" not in str(error):
            raise
        read = imported(schedule)
    found = findings_of(read, Profile.load(profile) if profile else None)
    if json:
        print(json_.dumps([asdict(finding) for finding in found], indent=2))
    else:
        console, colours = Console(), {"error": "red", "warning": "yellow"}
        for finding in found:
            colour = colours[finding.level]
            console.print(f"[{colour}]{finding.level}[/] {finding.code}: {finding.message}", highlight=False)
        console.print(f"{read.name}: {len(found) or 'no'} finding{'s' * (len(found) != 1)}")
    return sum(finding.level == "error" for finding in found)
