"""`adaptcache export`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..engines.formats import ENGINES
from ..engines.formats import export as form
from ..engines.formats.mask import Exported
from ..engines.formats.measure import MEASURABLE, measured
from ..files import check_writable
from ..presets import resolve
from ..presets.prompts import read_prompts
from ..runs import Call
from .files import Source, load_schedule
from .options import Device
from .screen import out, print_json, progress

__all__ = ["export"]


def export(
    schedule: Source,
    engine: Annotated[str, typer.Option("--to", "-t", help=f"The engine: {', '.join(ENGINES)}.")],
    to: Annotated[
        Path | None, typer.Option("--out", "-o", help="\\[default: NAME.ENGINE with the engine's ending]")
    ] = None,
    gear: Annotated[int, typer.Option(help="Which plan of the schedule.")] = 0,
    calls: Annotated[
        int | None, typer.Option(help="Compute this many steps. \\[default: as many as the plan]")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Steps of the run. \\[default: those it was fitted on]")
    ] = None,
    check_on: Annotated[
        int, typer.Option(help=f"Measure on this many held-out prompts ({', '.join(MEASURABLE)}).", min=0)
    ] = 0,
    model: Annotated[
        str, typer.Option("--model", "-m", help="What to measure on: a preset, a folder or a hub id.")
    ] = "emoji-flux",
    device: Device = None,
    json: Annotated[bool, typer.Option("--json", help="Print what is written as JSON.")] = False,
) -> None:
    """Write a schedule as the input of another engine, and say what is lost on the way.

    Other engines can only reuse: the computed steps are chosen anew for that before the file is written.

    Examples:

      adaptcache export flux.json --to diffusers            # inference needs no adaptcache

      adaptcache export flux.json --to cache-dit --out flux.yaml

      adaptcache export emoji.json --to diffusers --check-on 8
    """
    given = load_schedule(schedule)
    exported = form(given, engine, gear=gear, calls=calls, steps=steps)
    name = Path(schedule).stem if Path(schedule).is_file() else given.name
    path = check_writable(to or Path(f"{name}.{engine}{exported.ending}"))
    if check_on and (engine not in MEASURABLE or exported.mask is None):
        raise LookupError(f"--check-on measures {' and '.join(MEASURABLE)}; {engine} does not run here")
    exported.save(path)
    quality = _measured(exported, model, device, check_on) if check_on else None
    mask = exported.mask
    if json:
        print_json(
            {
                "out": str(path),
                "engine": engine,
                "mask": list(mask.computed) if mask else None,
                "predicted": mask.expected if mask else None,
                "measured": quality,
                "lost": list(exported.lost),
                "expects": list(exported.expects),
            }
        )
        return
    out.print(exported.explained(path))
    if quality:
        out.print(f"measured   {quality['mean']:.1f} dB, 5th percentile {quality['p05']:.1f}, in {engine}")
    out.print(f"wrote {path}")


def _measured(exported: Exported, model: str, device: str | None, count: int) -> dict[str, float]:
    preset = resolve(model)
    prompts = read_prompts(preset.prompts)
    assert exported.mask is not None
    pipe, call = preset.load_pipeline(device), Call(exported.mask.steps, preset.call)
    pipe.set_progress_bar_config(disable=True)  # one bar for all runs is enough
    held_out = prompts.held_out[:count]
    with progress() as report:
        return measured(
            pipe, call, held_out, exported, first=len(prompts.calibration),
            progress=lambda done: report(f"measuring {exported.engine}", done, 2 * len(held_out)),
        )  # fmt: skip
