"""`adaptcache report`"""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from .files import find_model, load_pipeline, load_schedule, wrote
from .options import Device, FittedModel
from .screen import complain, out, progress

if TYPE_CHECKING:
    from ..report import Measured
    from ..schedule.schedule import Schedule


def report(
    schedules: Annotated[list[str], Argument(help="Schedules, beside each other: files, folders or user/repo.")],
    to: Annotated[Path | None, Option("--out", "-o", help="\\[default: NAME.html, next to a file]")] = None,
    comparison: Annotated[Path | None, Option(help="What `adaptcache compare --out` wrote.")] = None,
    pictures: Annotated[bool, Option(help="Run the model, for pictures, speed and as many plain steps.")] = False,
    model: FittedModel = None,
    eval_on: Annotated[int, Option(help="Held-out prompts to run; the worst six are shown.", min=1)] = 16,
    device: Device = None,
    show: Annotated[bool, Option("--open", help="Open it in the browser.")] = False,
) -> None:
    """Write a page about schedules: one HTML file that works offline.

    \b
    Examples:
      adaptcache report schedules/emoji-flux-28-4x.json --pictures --open
      adaptcache report schedules/emoji-flux-28-2x.json schedules/emoji-flux-28-4x.json --pictures
      adaptcache report mine.json --model ./my-fine-tune --pictures
    """
    from ..files import check_writable
    from ..report import write_report
    from ..report.charts import check_charts

    if model and not pictures:
        raise ValueError("--model is what --pictures runs: give both, or none")
    described = [load_schedule(source) for source in schedules]
    first = Path(schedules[0])
    name = "-and-".join([first.stem if first.is_file() else described[0].name, *(one.name for one in described[1:])])
    target = check_writable(to or (first.parent if first.is_file() else Path()) / f"{name}.html")
    check_charts()
    said = wrote(target)
    measured = measure(described, model, eval_on, device) if pictures else None
    write_report(described, target, comparison, measured)
    out.print(said)
    if show and not webbrowser.open(target.resolve().as_uri()):
        complain(f"no browser was found: open {target.resolve()} in one")


def measure(schedules: list[Schedule], model: str | None, eval_on: int, device: str | None) -> Measured:
    """Runs held-out prompts in full, by each schedule, and by as many plain steps."""
    from ..engines import make_setup
    from ..engines.diffusers.engine import sampling_rate
    from ..evaluation.evaluate import evaluate_schedules
    from ..presets import read_prompts
    from ..report import Measured
    from ..runs import PromptSet

    preset = find_model(model, schedules)
    known = read_prompts(preset.prompts)
    held_out = known.held_out[:eval_on]
    steps = len(schedules[0].grid.times) or preset.steps
    pipe = load_pipeline(preset, device)
    with progress(kept="nothing was written") as bar:
        setup, _ = make_setup(pipe, steps, {"progress": bar, "pipe_kwargs": preset.call})
        rows, made = evaluate_schedules(setup, PromptSet(held_out, len(known.calibration)), schedules)
    return Measured.of(held_out, rows, made, rate=sampling_rate(pipe))
