"""Pages and pictures: `adaptcache report`, `adaptcache demo` and `adaptcache play`."""

from __future__ import annotations

import importlib.util
import time
import webbrowser
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from . import options as opt
from .files import find_model, load_pipeline, load_schedule, measure_schedules, open_cache, wrote
from .screen import complain, counted, out, print_whole, progress, quality_table

BUDGETS = (14, 10, 7, 5)  # calls of 28, of the demo
SHOWN = 2  # the number of the budget that the demo's picture shows


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
    from ..engines.diffusers.engine import sampling_rate
    from ..files import check_writable, locate
    from ..presets import read_prompts
    from ..report import Measured, build_report, write_report

    described = [load_schedule(source) for source in schedules]
    first = locate(schedules[0])
    name = "-and-".join([first.stem if first.is_file() else described[0].name, *(one.name for one in described[1:])])
    target = check_writable(to or (first.parent if first.is_file() else Path()) / f"{name}.html")
    if pictures:
        build_report(described, comparison)  # raises now what it would raise after the runs
    said = wrote(target)
    measured = None
    if pictures:
        preset = find_model(model, described)
        known, steps = read_prompts(preset.prompts), len(described[0].grid.times) or None
        pipe = load_pipeline(preset, device)
        rows, made = measure_schedules(pipe, preset, known, described, eval_on=eval_on, steps=steps)
        measured = Measured.of(known.held_out, rows, made, rate=sampling_rate(pipe))
    write_report(described, target, comparison, measured)
    out.print(said)
    if show and not webbrowser.open(target.resolve().as_uri()):
        complain(f"no browser was found: open {target.resolve()} in one")


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


def play(
    model: opt.FittedModel = None,
    schedule: Annotated[
        list[str] | None,
        Option("--schedule", "-s", help="Schedules to choose from; may be repeated. \\[default: fits them as needed]"),
    ] = None,
    steps: opt.Steps = None,
    settings: opt.Set = None,
    prompts: opt.Prompts = None,
    device: opt.Device = None,
    port: Annotated[
        int | None, Option(help="Where it listens. \\[default: 7860, or the next free]", min=1, max=65535)
    ] = None,
    show: opt.Open = False,
) -> None:
    """Open a page to play with: full run, schedule and as many plain steps side by side, with a slider over calls.

    It listens on this machine alone, until Ctrl-C. Needs the extra:
    pip install 'adaptcache-diffusers\\[play]'

    \b
    Examples:
      adaptcache play --open                        # the demo model
      adaptcache play --model flux -s schedules/flux-28-2.8x.json
    """
    from ..engines import make_setup
    from ..presets import read_prompts
    from ..report.play import Player, build_page, check_gradio, launch

    check_gradio()
    schedules = [load_schedule(source) for source in schedule or []]
    preset = find_model(model, schedules).called_with(settings or [])
    known = read_prompts(prompts or preset.prompts)
    pipe = load_pipeline(preset, device)
    options = {"pipe_kwargs": preset.call, "batch_size": preset.batch_size, "cache": open_cache(), "progress": False}
    setup = make_setup(pipe, preset.steps if steps is None else steps, options)
    page = build_page(Player(setup, known.calibration[:16], schedules, pipe), preset.name, known.held_out[0])
    address = launch(page, port)
    out.print(f"{preset.name} plays at {address} until Ctrl-C")
    if show and not webbrowser.open(address):
        complain(f"no browser was found: open {address} in one")
    try:
        while True:
            time.sleep(1)
    finally:
        page.close(verbose=False)
