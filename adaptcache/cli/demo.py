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
    from ..cache import Cache
    from ..calibration.calibrate import calibrate
    from ..engines import make_setup
    from ..evaluation.evaluate import evaluate_schedules
    from ..files import check_writable
    from ..presets import read_prompts, resolve
    from ..report.picture import side_by_side
    from ..runs import PromptSet

    preset = resolve(model)
    known = read_prompts(preset.prompts)
    steps = preset.steps
    held_out = known.held_out[:eval_on]
    picture = check_writable(to / "side-by-side.png")
    said = wrote(picture)
    pipe = load_pipeline(preset)
    schedules = []
    with progress(kept=f"schedules and full runs are kept in {to}: the same command goes on") as report:
        for calls in (round(calls * steps / 28) for calls in BUDGETS):
            name = f"{preset.name}-{steps}-{steps / calls:.2g}x"
            schedule = calibrate(
                pipe, known.calibration, steps, budget=calls / steps, pipe_kwargs=preset.call,
                batch_size=preset.batch_size, name=name, cache=Cache(to / "cache"), progress=report,
            )  # fmt: skip
            schedule.save(to / f"{name}.json")
            schedules.append(schedule)
        setup, _ = make_setup(pipe, steps, {"progress": report, "pipe_kwargs": preset.call})
        rows, made = evaluate_schedules(setup, PromptSet(held_out, len(known.calibration)), schedules)
    cached, fewer = len(rows) - 2, len(rows) - 1  # at the smallest budget, where there is most to see
    columns = {rows[i].name: made[i].images[:pictures] for i in (fewer, 0, cached)}
    side_by_side(held_out[:pictures], columns, picture)
    out.print(f"\n{len(held_out)} held-out prompts, {steps} steps, against the full run with the same noise:\n")
    print_whole(quality_table(rows, steps))
    out.print(f"\n{said} and {', '.join(f'{schedule.name}.json' for schedule in schedules)}")
