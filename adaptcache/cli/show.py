"""`adaptcache show`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from ..policies.plan import Plan
from ..schedule import Schedule
from .screen import out, print_json

__all__ = ["describe", "show"]


def show(
    schedule: Annotated[Path, typer.Argument(help="A schedule file.")],
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what a schedule does, how good it is and where it came from.

    Example:  adaptcache show schedules/emoji-flux-28-2.8x.json
    """
    loaded = Schedule.load(schedule)
    if json:
        print_json(loaded.model_dump(by_alias=True, exclude_none=True))
    else:
        describe(loaded)


def describe(schedule: Schedule) -> None:
    """Prints a schedule for people."""
    rule, times = schedule.rules[0], schedule.grid.times
    view = Table(box=None, show_header=False)
    view.add_row("schedule", f"[bold]{escape(schedule.name)}[/]")
    view.add_row("fitted on", escape(f"{schedule.denoiser.class_name}  {schedule.denoiser.checkpoint}"))
    grid = (
        f"{len(times)} of {schedule.grid.scheduler}, t from {times[0]:.3f} to {times[-1]:.3f}"
        if times
        else ""
    )
    view.add_row("steps", grid or "any: nothing was fitted")
    for one in schedule.rules if rule.site != "step" else ():
        view.add_row("site", f"{one.site}: {one.policy.type}, {one.forecast.type}")
    view.add_row("policy", rule.policy.type)
    if isinstance(rule.policy, Plan):
        for number, gear in enumerate(rule.policy.gears):
            steps = rule.policy.steps(times, number)
            strip = "".join("█" if i in steps else "·" for i in range(len(times)))
            name = "plan" if len(rule.policy.gears) == 1 else f"gear {number}"
            view.add_row(name, f"{strip}  {len(steps)} of {len(times)} calls, budget {gear.budget:.2f}")
    view.add_row(
        "forecast", ", ".join(f"{k} {v}" for k, v in rule.forecast.model_dump(exclude={"table"}).items())
    )
    if schedule.evidence:
        seen = schedule.evidence
        view.add_row(
            "evidence",
            f"{seen.psnr['mean']:.1f} dB on {seen.n} held-out prompts (5th percentile {seen.psnr['p05']:.1f})"
            f" with {seen.calls[0]} of {seen.calls[1]} calls, {seen.speed:.2f}x fewer",
        )
    else:
        view.add_row("evidence", "none: calibrate with held-out prompts")
    view.add_row(
        "other grids", "planned anew from its kernel" if schedule.kernel else "refused: it has no kernel"
    )
    for key, value in schedule.made.items():
        view.add_row(escape(f"made.{key}"), escape(str(value)))
    out.print(view)
