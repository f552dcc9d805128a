"""`adaptcache calibrate`"""

from __future__ import annotations

from json import loads as json_of
from pathlib import Path
from typing import Annotated, Any

import typer

from ..calibrate import calibrate as fit_schedule
from ..calibrate import calls_for
from ..files import check_writable
from ..presets import OURS, resolve
from ..presets.prompts import read_prompts
from ..presets.sampler import with_sampler
from ..profiling.store import Store
from .screen import out, print_json, progress
from .show import describe

__all__ = ["calibrate"]

Model = Annotated[str, typer.Option("--model", "-m", help="A preset, a preset file, a folder or a hub id.")]

Scheduler = Annotated[
    str | None,
    typer.Option(help="Another sampler: a scheduler class of diffusers. [default: the pipeline's]"),
]
CallSettings = Annotated[
    list[str], typer.Option("--set", help="An argument of the pipeline: true_cfg_scale=3. May be repeated.")
]


def parsed(settings: list[str]) -> dict[str, Any]:
    """Returns arguments of a pipeline from NAME=VALUE, with values as in JSON; others are text."""
    arguments: dict[str, Any] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not name.strip().isidentifier():
            raise ValueError(f"--set takes NAME=VALUE, say true_cfg_scale=3; got {setting!r}")
        if name.strip() in OURS:
            raise ValueError(f"--set {name.strip()}: adaptcache sets that itself")
        try:
            arguments[name.strip()] = json_of(value)
        except ValueError:
            arguments[name.strip()] = value
    return arguments


def calibrate(
    model: Model = "emoji-flux",
    speed: Annotated[
        float | None, typer.Option(help="Steps for each denoiser call made. [default: 2.8]")
    ] = None,
    budget: Annotated[
        float | None, typer.Option(help="Fraction of the calls made, instead of --speed.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Scheduler steps. [default: the preset's]")] = None,
    scheduler: Scheduler = None,
    settings: CallSettings = [],  # noqa: B006
    prompts: Annotated[
        str | None, typer.Option(help="A prompt file, or the name of an embedded one.")
    ] = None,
    fit_on: Annotated[int, typer.Option(help="Use at most this many calibration prompts.", min=1)] = 16,
    check_on: Annotated[
        int, typer.Option(help="Use at most this many held-out prompts; 0 checks nothing.", min=0)
    ] = 32,
    teacher_steps: Annotated[
        int | None,
        typer.Option(help="Match a finer run of this many steps: corrects the sampler's error too."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Noise of the first prompt.")] = 0,
    batch_size: Annotated[
        int | None, typer.Option(help="Prompts in one run. [default: the preset's]", min=1)
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cuda, mps, cpu. [default: the fastest there is]")
    ] = None,
    name: Annotated[str | None, typer.Option(help="What the schedule is called.")] = None,
    to: Annotated[Path | None, typer.Option("--out", "-o", help="[default: schedules/NAME.json]")] = None,
    cache: Annotated[bool, typer.Option(help="Keep full runs for the next target.")] = True,
    json: Annotated[bool, typer.Option("--json", help="Print the evidence as JSON.")] = False,
) -> None:
    """Fit a schedule: profile, plan, match, validate. Writes one JSON file.

    Another target on the same model, steps and prompts costs seconds: full runs are kept.

    Examples:

      adaptcache calibrate                                  # the demo model, 2.8x

      adaptcache calibrate --model flux --speed 2.8

      adaptcache calibrate --model ./my-fine-tune --steps 40 --budget 0.25 --prompts mine.txt
    """
    preset = resolve(model)
    if speed is None and budget is None:
        speed = 2.8
    steps = preset.steps if steps is None else steps
    calls = calls_for(steps, budget, speed)
    name = name or f"{preset.name}-{steps}-{steps / calls:.2g}x"
    target = check_writable(to or Path("schedules") / f"{name}.json")
    known = read_prompts(prompts or preset.prompts)
    arguments = {**preset.call, **parsed(settings)}
    pipe = with_sampler(preset.load_pipeline(device), scheduler)
    with progress() as report:
        schedule = fit_schedule(
            pipe,
            known.calibration[:fit_on],
            steps=steps,
            speed=speed,
            budget=budget,
            call=arguments,
            held_out=known.held_out[:check_on],
            seed=seed,
            batch_size=batch_size or preset.batch_size,
            teacher_steps=teacher_steps,
            name=name,
            store=Store() if cache else None,
            progress=report,
        )
    schedule.save(target)
    if json:
        evidence = schedule.evidence.model_dump(exclude_none=True) if schedule.evidence else None
        print_json({"schedule": str(target), "name": schedule.name, "evidence": evidence})
    else:
        describe(schedule)
        out.print(f"wrote {target}")
