"""`adaptcache demo`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Option

from .files import load_pipeline, wrote
from .options import Model
from .screen import out, print_whole, progress, quality_table

BUDGETS = (14, 10, 7, 5)  # calls of 28


def demo(
    model: Model = "emoji-flux",
    to: Annotated[Path, Option("--out", "-o", help="The folder to write to.")] = Path("demo-output"),
    eval_on: Annotated[int, Option(help="Measure on this many held-out prompts.", min=1)] = 32,
    pictures: Annotated[int, Option(help="Rows of the picture.", min=1)] = 6,
) -> None:
    """Calibrate the demo model at four budgets, compare on held-out prompts, draw the images.

    Writes a schedule for each budget and side-by-side.png. Example:  adaptcache demo
    """
    from ..calibration.calibrate import calibrate
    from ..evaluation.evaluate import compared
    from ..files import check_writable
    from ..presets import read_prompts, resolve
    from ..profiling.cache import Store
    from ..report.picture import side_by_side
    from ..runs import Call

    preset = resolve(model)
    known = read_prompts(preset.prompts)
    call = Call(preset.steps, preset.call)
    held_out = known.held_out[:eval_on]
    picture = check_writable(to / "side-by-side.png")
    said = wrote(picture)
    pipe = load_pipeline(preset)
    schedules = []
    with progress(kept=f"schedules and full runs are kept in {to}: the same command goes on") as report:
        for calls in (round(calls * call.steps / 28) for calls in BUDGETS):
            name = f"{preset.name}-{call.steps}-{call.steps / calls:.2g}x"
            schedule = calibrate(
                pipe, known.calibration, steps=call.steps, budget=calls / call.steps, call=preset.call,
                batch_size=preset.batch_size, name=name, store=Store(to / "cache"), progress=report,
            )  # fmt: skip
            schedule.save(to / f"{name}.json")
            schedules.append(schedule)
        first = len(known.calibration)
        rows, made = compared(pipe, call, held_out, schedules, first=first, progress=report)
    cached, fewer = len(rows) - 2, len(rows) - 1  # at the smallest budget, where there is most to see
    columns = {rows[i].name: made[i].images[:pictures] for i in (fewer, 0, cached)}
    side_by_side(held_out[:pictures], columns, picture)
    out.print(
        f"\n{len(held_out)} held-out prompts, {call.steps} steps, against the full run with the same noise:\n"
    )
    print_whole(quality_table(rows, call.steps))
    out.print(f"\n{said} and {', '.join(f'{schedule.name}.json' for schedule in schedules)}")
