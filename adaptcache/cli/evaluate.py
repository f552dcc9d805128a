"""`adaptcache evaluate`"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from . import options as opt
from .files import find_model, load_pipeline, load_schedule, measure_schedules, wrote
from .screen import counted, out, print_json, print_whole, quality_table

if TYPE_CHECKING:
    from ..evaluation.evaluate import Row
    from ..schedule.findings import Finding
    from ..schedule.schedule import Schedule


def evaluate(
    schedule: Annotated[list[str], Option("--schedule", "-s", help="A file, a folder or user/repo; may be repeated.")],
    model: opt.FittedModel = None,
    prompts: opt.Prompts = None,
    eval_on: opt.EvalOn = opt.EVAL_ON,
    steps: opt.Steps = None,
    settings: opt.Set = None,
    seed: opt.Seed = 0,
    batch_size: Annotated[int, opt.run(help="Prompts in one run.", min=1)] = 1,
    device: opt.Device = None,
    to: Annotated[Path | None, opt.output("--out", "-o", help="Draw a picture, say scores.png.")] = None,
    pictures: opt.Rows = 6,
    json: opt.Json = False,
) -> None:
    """Score schedules on a model: a schedule from elsewhere on your fine-tune, say. Changes neither.

    Runs held-out prompts in full and by each schedule with the same noise,
    and next to it as many plain steps as the schedule has calls: what you
    would have without caching. Says before how the model differs from the
    one a schedule was fitted on.

    \b
    Examples:
      adaptcache evaluate --schedule schedules/emoji-flux-28-4x.json
      adaptcache evaluate --model ./my-fine-tune --prompts mine.txt \\
        -s flux.json -s user/flux-schedules
      adaptcache evaluate --model ./my-fine-tune -s flux.json --steps 40 \\
        --eval-on 8 --out scores.png
    """
    from ..engines.diffusers.compatibility import graded
    from ..errors import ScheduleError
    from ..files import check_image
    from ..presets import read_prompts
    from ..report import Measured
    from ..report.picture import side_by_side
    from ..schedule.findings import Grade, explain_findings, worst_grade

    schedules = [load_schedule(source) for source in schedule]
    preset = find_model(model, schedules).called_with(settings or [])
    known = read_prompts(prompts or preset.prompts)
    held_out = known.held_out[:eval_on]
    said = wrote(check_image(to)) if to else ""
    pipe = load_pipeline(preset, device)
    steps = preset.steps if steps is None else steps
    found = [graded(one, pipe, call=preset.call, steps=steps) for one in schedules]
    for one, findings in zip(schedules, found, strict=True):
        if worst_grade(findings) == Grade.REFUSED:
            raise ScheduleError(explain_findings(one, findings))
        if not json:
            out.print(explain_findings(one, findings) if findings else f"{one.name} was fitted on this.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # said above
        rows, made = measure_schedules(
            pipe, preset, known, schedules, eval_on=eval_on, steps=steps, seed=seed, batch_size=batch_size
        )
    if to:
        measured = Measured.of(held_out, rows, made, most=pictures)
        side_by_side(measured.prompts, measured.columns(), to)
    results = list(zip(schedules, found, rows[1::2], rows[2::2], strict=True))
    if json:
        about = {"model": preset.name, "steps": steps, "held_out": len(held_out)}
        data = {"out": str(to) if to else None, "rows": [_data(*result) for result in results]}
        print_json(about | data)
        return
    out.print(f"\n{counted(len(held_out), 'held-out prompt')} of {known.name}, {counted(steps, 'step')}:\n")
    print_whole(quality_table(rows, steps))
    out.print("\n" + "\n".join(_verdict(one, here, plain) for one, _, here, plain in results))
    if said:
        out.print(said)


def _verdict(schedule: Schedule, here: Row, plain: Row) -> str:
    from ..hub.card import format_psnr

    gain = here.psnr["mean"] - plain.psnr["mean"]
    says = f"{abs(gain):.1f} dB {'above' if gain >= 0 else 'BELOW'} {plain.name} without caching"
    seen = schedule.evidence
    where = f"; {format_psnr(seen.psnr['mean'])} where it was fitted" if seen else ""
    return f"{schedule.name}: {format_psnr(here.psnr['mean'])} here, {says}{where}"


def _data(schedule: Schedule, findings: list[Finding], here: Row, plain: Row) -> dict[str, Any]:
    return {
        "schedule": schedule.name,
        "differences": [{"what": f.what, "grade": str(f.grade), "says": f.says} for f in findings],
        "here": vars(here),
        "fewer_steps": vars(plain),
        "fitted": schedule.evidence.psnr if schedule.evidence else None,
    }
