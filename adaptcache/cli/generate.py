"""`adaptcache generate`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..evaluation.evaluate import row
from ..evaluation.generate import generate as run
from ..files import check_image, check_writable
from ..presets import resolve
from ..report.picture import save_output, side_by_side
from ..runs import Call, sampling_rate
from .options import Device, Model, Set, Steps
from .screen import out, print_json, progress, table
from .source import loaded

__all__ = ["generate"]


def generate(
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="What to generate.")],
    model: Model = "emoji-flux",
    schedule: Annotated[
        str | None,
        typer.Option("--schedule", "-s", help="A file, a folder or user/repo; none runs in full."),
    ] = None,
    seed: Annotated[int, typer.Option(help="The noise.")] = 0,
    steps: Steps = None,
    settings: Set = None,
    compare: Annotated[
        bool, typer.Option(help="Also run in full; write both, and their difference.")
    ] = False,
    device: Device = None,
    to: Annotated[
        Path, typer.Option("--out", "-o", help="The file to write: .png, .gif for clips, .wav for sound.")
    ] = Path("image.png"),
    json: Annotated[bool, typer.Option("--json", help="Print what was measured as JSON.")] = False,
) -> None:
    """Generate from one prompt by a schedule.

    Example:

      adaptcache generate -p "pizza noto style blue background" -s schedules/emoji-flux-28-2.8x.json --compare
    """
    preset = resolve(model).called_with(settings or [])
    fitted = loaded(schedule) if schedule else None
    if compare and fitted is None:
        raise ValueError("--compare needs a --schedule to compare with the full run")
    sound = to.suffix.lower() == ".wav"
    if sound and compare:
        raise ValueError("--compare draws a picture, of sound too; use an ending such as .png")
    (check_writable if sound else check_image)(to)
    pipe = preset.load_pipeline(device)
    rate = sampling_rate(pipe)
    if sound and rate is None:
        raise ValueError(f"{preset.name} makes no sound; use an ending such as .png instead of .wav")
    call = Call(preset.steps if steps is None else steps, preset.call, seed)
    with progress() as report:
        made = run(pipe, call, [prompt], fitted, progress=lambda done: report("generating", done, 1))
        full = (
            run(pipe, call, [prompt], progress=lambda done: report("in full", done, 1)) if compare else None
        )
    if full:
        side_by_side([prompt], {"full run": full.images, f"{made.calls} calls": made.images}, to)
        rows = [row("full run", full, full), row(fitted.name if fitted else "", made, full)]
        if not json:
            out.print(table(rows, call.steps))
    else:
        save_output(made.images[0], to, rate)
    if json:
        worth = {"psnr": rows[1].psnr["mean"], "loop_speed": rows[1].loop} if full else {}
        print_json({"out": str(to), "calls": made.calls, "seconds": made.total, **worth})
    else:
        out.print(f"wrote {to}  ({made.calls} denoiser calls, {made.total:.2f} s)")
