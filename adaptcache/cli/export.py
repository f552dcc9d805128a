"""`adaptcache export`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .files import Source, load_pipeline, load_schedule
from .options import Device
from .screen import out, print_json, progress

__all__ = ["export"]


def export(
    schedule: Source,
    engine: Annotated[str, typer.Option("--to", "-t", help="The engine; a wrong name lists all.")],
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
        int, typer.Option(help="Measure on this many held-out prompts, in engines that run here.", min=0)
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
    from ..engines.formats import export as form
    from ..engines.formats.measure import MEASURABLE
    from ..files import check_writable

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


def _measured(exported: Any, model: str, device: str | None, count: int) -> dict[str, float]:
    from ..engines.formats.measure import measured
    from ..presets import read_prompts, resolve
    from ..runs import Call

    preset = resolve(model)
    prompts = read_prompts(preset.prompts)
    assert exported.mask is not None
    pipe, call = load_pipeline(preset, device), Call(exported.mask.steps, preset.call)
    pipe.set_progress_bar_config(disable=True)  # one bar for all runs is enough
    held_out = prompts.held_out[:count]
    with progress() as report:
        return measured(
            pipe, call, held_out, exported, first=len(prompts.calibration),
            progress=lambda done: report(f"measuring {exported.engine}", done, 2 * len(held_out)),
        )  # fmt: skip
