"""`adaptcache report`"""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from . import options as opt
from .files import find_model, load_pipeline, load_schedule, measure_schedules, wrote
from .screen import complain, out

if TYPE_CHECKING:
    from ..report import Measured
    from ..schedule.schedule import Schedule


def report(
    schedules: Annotated[list[str], Argument(help="Schedules, beside each other: files, folders or user/repo.")],
    to: Annotated[
        Path | None, opt.output("--out", "-o", help="The page. \\[default: NAME.html, next to a file]")
    ] = None,
    comparison: Annotated[Path | None, Option(help="What `adaptcache compare --out` wrote.")] = None,
    pictures: Annotated[bool, Option(help="Run the model, for pictures, speed and as many plain steps.")] = False,
    model: opt.FittedModel = None,
    eval_on: Annotated[int, Option(help="Held-out prompts to run; the worst six are shown.", min=1)] = 16,
    device: opt.Device = None,
    show: opt.Open = False,
) -> None:
    """Write a page about schedules: one HTML file that works offline.

    \b
    Examples:
      adaptcache report schedules/emoji-flux-28-4x.json --pictures --open
      adaptcache report schedules/emoji-flux-28-2x.json \\
        schedules/emoji-flux-28-4x.json --pictures
      adaptcache report mine.json --model ./my-fine-tune --pictures
    """
    from ..files import check_writable
    from ..report import build_report, write_report

    if (model or device) and not pictures:
        raise ValueError("--model and --device are for what --pictures runs: give it too, or leave them out")
    described = [load_schedule(source) for source in schedules]
    first = Path(schedules[0])
    name = "-and-".join([first.stem if first.is_file() else described[0].name, *(one.name for one in described[1:])])
    target = check_writable(to or (first.parent if first.is_file() else Path()) / f"{name}.html")
    if pictures:
        build_report(described, comparison)  # raises now what it would raise after the runs
    said = wrote(target)
    measured = measure(described, model, eval_on, device) if pictures else None
    write_report(described, target, comparison, measured)
    out.print(said)
    if show and not webbrowser.open(target.resolve().as_uri()):
        complain(f"no browser was found: open {target.resolve()} in one")


def measure(schedules: list[Schedule], model: str | None, eval_on: int, device: str | None) -> Measured:
    """Runs held-out prompts in full, by each schedule, and by as many plain steps."""
    from ..engines.diffusers.engine import sampling_rate
    from ..presets import read_prompts
    from ..report import Measured

    preset = find_model(model, schedules)
    known, steps = read_prompts(preset.prompts), len(schedules[0].grid.times) or None
    pipe = load_pipeline(preset, device)
    rows, made = measure_schedules(pipe, preset, known, schedules, eval_on=eval_on, steps=steps)
    return Measured.of(known.held_out, rows, made, rate=sampling_rate(pipe))
