"""`adaptcache evaluate`"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from ..engines.diffusers.compatibility import graded
from ..errors import ScheduleError
from ..evaluation.evaluate import Row, compared
from ..evaluation.generate import Generation
from ..files import check_image
from ..presets import resolve
from ..presets.prompts import read_prompts
from ..report.picture import side_by_side
from ..runs import Call
from ..schedule.findings import Finding, Grade, explain_findings, worst_grade
from ..schedule.schedule import Schedule
from .options import Device, Model, Seed, Set, Steps
from .screen import out, print_json, progress, table
from .source import loaded

__all__ = ["evaluate"]


def evaluate(
    schedule: Annotated[
        list[str],
        typer.Option("--schedule", "-s", help="A file, a folder or user/repo of the hub; may be repeated."),
    ],
    model: Model = "emoji-flux",
    prompts: Annotated[
        str | None, typer.Option(help="A prompt file, or the name of an embedded one: its held-out part.")
    ] = None,
    check_on: Annotated[int, typer.Option(help="Use at most this many of the prompts.", min=1)] = 32,
    steps: Steps = None,
    settings: Set = None,
    seed: Seed = 0,
    batch_size: Annotated[int, typer.Option(help="Prompts in one run.", min=1)] = 1,
    device: Device = None,
    to: Annotated[Path | None, typer.Option("--out", "-o", help="Draw a picture, say scores.png.")] = None,
    pictures: Annotated[int, typer.Option(help="Rows of the picture.", min=1)] = 6,
    json: Annotated[bool, typer.Option("--json", help="Print what was measured as JSON.")] = False,
) -> None:
    """Score schedules on a model: somebody's schedule on your fine-tune, say. Changes neither.

    Runs held-out prompts in full and by each schedule with the same noise, and next to it as many plain
    steps as the schedule has calls: what you would have without caching. Says before how the model differs
    from the one a schedule was fitted on.

    Examples:

      adaptcache evaluate --schedule schedules/emoji-flux-28-2.8x.json

      adaptcache evaluate --model ./my-fine-tune -s flux.json -s user/flux-schedules --prompts mine.txt

      adaptcache evaluate --model ./my-fine-tune -s flux.json --steps 40 --check-on 8 --out scores.png
    """
    schedules = [loaded(source) for source in schedule]
    preset = resolve(model).called_with(settings or [])
    known = read_prompts(prompts or preset.prompts)
    held_out = known.held_out[:check_on]
    if to:
        check_image(to)
    pipe = preset.load_pipeline(device)
    call = Call(preset.steps if steps is None else steps, preset.call, seed)
    found = [graded(one, pipe, call=preset.call, steps=call.steps) for one in schedules]
    for one, findings in zip(schedules, found, strict=True):
        if worst_grade(findings) == Grade.REFUSED:
            raise ScheduleError(explain_findings(one, findings))
    if not json:
        for one, findings in zip(schedules, found, strict=True):
            out.print(explain_findings(one, findings) if findings else f"{one.name} was fitted on this.")
    with progress() as report, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # said above
        rows, images = compared(
            pipe, call, held_out, schedules, batch_size=batch_size, first=len(known.calibration),
            progress=report,
        )  # fmt: skip
    if to:
        _draw(rows, images, held_out[:pictures], to)
    if json:
        print_json(_data(preset.name, call.steps, len(held_out), schedules, found, rows, to))
        return
    out.print(f"\n{len(held_out)} held-out prompts of {known.name}, {call.steps} steps:\n")
    out.print(table(rows, call.steps))
    out.print()
    for one, here, plain in zip(schedules, rows[1::2], rows[2::2], strict=True):
        out.print(_verdict(one, here, plain))
    if to:
        out.print(f"wrote {to}")


def _verdict(schedule: Schedule, here: Row, plain: Row) -> str:
    gain = here.psnr["mean"] - plain.psnr["mean"]
    says = f"{abs(gain):.1f} dB {'above' if gain >= 0 else 'BELOW'} {plain.name} without caching"
    seen = schedule.evidence
    where = f"; {seen.psnr['mean']:.1f} dB where it was fitted" if seen else ""
    return f"{schedule.name}: {here.psnr['mean']:.1f} dB here, {says}{where}"


def _draw(rows: list[Row], made: list[Generation], prompts: tuple[str, ...], to: Path) -> None:
    """Draws the full run next to the first schedule, whose difference is shown; what else was run before."""
    others = [k for k in range(len(rows)) if k > 1]
    side_by_side(prompts, {rows[k].name: made[k].images[: len(prompts)] for k in (*others, 0, 1)}, to)


def _data(
    model: str,
    steps: int,
    count: int,
    schedules: list[Schedule],
    found: list[list[Finding]],
    rows: list[Row],
    to: Path | None,
) -> dict[str, Any]:
    """Returns what is printed as JSON."""
    lines = []
    for one, findings, here, plain in zip(schedules, found, rows[1::2], rows[2::2], strict=True):
        evidence = one.evidence.psnr if one.evidence else None
        differences = [{"what": f.what, "grade": str(f.grade), "says": f.says} for f in findings]
        lines.append(
            {
                "schedule": one.name,
                "differences": differences,
                "here": vars(here),
                "fewer_steps": vars(plain),
                "fitted": evidence,
            }
        )
    return {"model": model, "steps": steps, "held_out": count, "out": str(to) if to else None, "rows": lines}
