"""`adaptcache demo`"""

import importlib.util
from pathlib import Path
from typing import Annotated

from . import options as opt
from .files import load_pipeline, measure_schedules, wrote
from .screen import counted, out, print_whole, progress, quality_table

BUDGETS = (14, 10, 7, 5)  # calls of 28
SHOWN = 2  # the number of the budget that the picture shows


def demo(
    model: opt.Model = opt.DEMO,
    to: Annotated[Path, opt.output("--out", "-o", help="The folder to write to.")] = Path("demo-output"),
    eval_on: opt.EvalOn = opt.EVAL_ON,
    pictures: opt.Rows = 6,
) -> None:
    """Calibrate the demo model at four budgets, compare on held-out prompts, draw the images.

    Writes a schedule for each budget, side-by-side.png and report.html.

    Example:  adaptcache demo
    """
    from ..cache import Cache
    from ..calibration.calibrate import calibrate
    from ..evaluation.metrics import psnr_each
    from ..evaluation.validate import evidence_of
    from ..files import check_writable
    from ..presets import read_prompts, resolve
    from ..report import Measured, write_report
    from ..report.picture import side_by_side

    preset = resolve(model)
    known = read_prompts(preset.prompts)
    steps = preset.steps
    held_out = known.held_out[:eval_on]
    picture, page = (check_writable(to / name) for name in ("side-by-side.png", "report.html"))
    charts = all(map(importlib.util.find_spec, ("jinja2", "matplotlib")))
    said = [wrote(picture), wrote(page) if charts else "no report: pip install 'adaptcache-diffusers[report]'"]
    pipe = load_pipeline(preset)
    schedules = []
    kept = f"finished full runs are kept in {to}: the same command goes on from them"
    with progress(kept=kept) as report:
        for calls in (round(calls * steps / 28) for calls in BUDGETS):
            name = f"{preset.name}-{steps}-{steps / calls:.2g}x"
            schedules.append(calibrate(
                pipe, known.calibration, steps, budget=calls / steps, pipe_kwargs=preset.call,
                batch_size=preset.batch_size, name=name, cache=Cache(to / "cache"), progress=report,
            ))  # fmt: skip
    rows, made = measure_schedules(pipe, preset, known, schedules, eval_on=eval_on, kept=kept)
    for number, schedule in enumerate(schedules):
        ours = made[1 + 2 * number]
        values = psnr_each(ours.images, made[0].images)
        schedules[number] = schedule.model_copy(update={"evidence": evidence_of(values, ours.calls, steps)})
        schedules[number].save(to / f"{schedule.name}.json")
    measured = Measured.of(held_out, rows, made, most=pictures, worst_of=SHOWN)
    shown = measured.only(SHOWN)
    side_by_side(shown.prompts, shown.columns(), picture)
    if charts:
        write_report(schedules[SHOWN], page, measured=shown)
    out.print(
        f"\n{counted(len(held_out), 'held-out prompt')}, {steps} steps, against the full run with the same noise:\n"
    )
    print_whole(quality_table(rows, steps))
    out.print(f"\npictures: the prompts that {schedules[SHOWN].name} does worst on")
    out.print("\n".join([*said, f"wrote {', '.join(f'{one.name}.json' for one in schedules)} into {to}"]))
