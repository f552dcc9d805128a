"""`adaptcache calibrate`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..calibration.calibrate import calibrate as fit_schedule
from ..calibration.calibrate import calls_for
from ..calibration.methods import calibrate_method
from ..distributed import joined
from ..engines.diffusers.sampler import with_sampler
from ..files import check_writable
from ..presets import resolve
from ..presets.prompts import read_prompts
from ..profiling.cache import Store
from ..schedule.methods import find_method
from ..schedule.schedule import Schedule
from .options import BatchSize, Device, Model, Name, Out, Prompts, Scheduler, Seed, Set, Steps
from .screen import out, print_json, progress
from .show import describe

__all__ = ["calibrate"]


def calibrate(
    model: Model = "emoji-flux",
    speed: Annotated[
        float | None, typer.Option(help="Steps for each denoiser call made. \\[default: 2.8]")
    ] = None,
    budget: Annotated[
        float | None, typer.Option(help="Fraction of the calls made, instead of --speed.")
    ] = None,
    steps: Steps = None,
    scheduler: Scheduler = None,
    settings: Set = None,
    prompts: Prompts = None,
    fit_on: Annotated[int, typer.Option(help="Use at most this many calibration prompts.", min=1)] = 16,
    check_on: Annotated[
        int | None,
        typer.Option(
            help="How many held-out prompts to use; 0 checks nothing. \\[default: 32, or all to certify]",
            min=0,
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(help="Fit a published method instead of our own; `adaptcache methods` lists them."),
    ] = None,
    teacher_steps: Annotated[
        int | None,
        typer.Option(help="Match a finer run of this many steps: corrects the sampler's error too."),
    ] = None,
    gears: Annotated[
        str | None,
        typer.Option(help="Budgets of several plans: each run takes the cheapest that promises --min-psnr."),
    ] = None,
    min_psnr: Annotated[
        float | None, typer.Option(help="Decibels against the full run that a prompt should reach.")
    ] = None,
    at_most: Annotated[float, typer.Option(help="Share of prompts that may stay below it.")] = 0.05,
    confidence: Annotated[float, typer.Option(help="How sure a certificate has to be.")] = 0.95,
    certify: Annotated[
        bool, typer.Option("--certify", help="Test it on held-out prompts; what fails computes every step.")
    ] = False,
    seed: Seed = 0,
    batch_size: BatchSize = None,
    device: Device = None,
    name: Name = None,
    to: Out = None,
    cache: Annotated[bool, typer.Option(help="Keep full runs for the next target.")] = True,
    json: Annotated[bool, typer.Option("--json", help="Print the evidence as JSON.")] = False,
) -> None:
    """Fit a schedule: profile, plan, match, validate. Writes one JSON file.

    Another target on the same model, steps and prompts costs seconds: full runs are kept.

    Examples:

      adaptcache calibrate                                  # the demo model, 2.8x

      adaptcache calibrate --model flux --speed 2.8

      adaptcache calibrate --model ./my-fine-tune --steps 40 --budget 0.25 --prompts mine.txt --set height=768

      adaptcache calibrate --gears 0.18,0.25,0.36,0.5 --min-psnr 40 --prompts emoji-varied --fit-on 80

      adaptcache calibrate --speed 4 --min-psnr 40 --certify --prompts emoji-varied

      adaptcache calibrate --method magcache --budget 0.5   # what was published, fitted to this model

      torchrun --nproc_per_node 8 -m adaptcache calibrate --model flux    # on eight GPUs
    """
    if method:
        find_method(method)
        ours_only = {"--teacher-steps": teacher_steps, "--gears": gears, "--certify": certify}
        if wrong := [option for option, given in ours_only.items() if given]:
            raise ValueError(f"published methods are fitted as they are: give --method or {wrong[0]}")
    with joined() as ranks:
        if method and ranks.size > 1:
            raise ValueError("published methods are fitted in one process; start it without a launcher")
        preset = resolve(model).called_with(settings or [])
        budgets = parsed_gears(gears)
        if speed is None and budget is None and not budgets:
            speed = 2.8
        steps = preset.steps if steps is None else steps
        kind = f"gears-{min_psnr or 0:g}dB" if budgets else f"{steps / calls_for(steps, budget, speed):.2g}x"
        name = name or "-".join(filter(None, (preset.name, str(steps), method, kind)))
        check_on = (1_000_000 if certify else 32) if check_on is None else check_on
        target = to or Path("schedules") / f"{name}.json"
        if ranks.rank == 0:
            check_writable(target)
        known = read_prompts(prompts or preset.prompts)
        calibration = known.calibration[:fit_on]
        share = -(-len(calibration) // ranks.size)  # so that no rank has nothing to do
        pipe = with_sampler(preset.load_pipeline(device or ranks.device), scheduler)
        ours: dict[str, Any] = {
            "teacher_steps": teacher_steps, "gears": budgets, "min_psnr": min_psnr, "at_most": at_most,
            "confidence": confidence, "certify": certify, "ranks": ranks,
        }  # fmt: skip
        with progress(shown=ranks.rank == 0) as report:
            schedule = (calibrate_method if method else fit_schedule)(
                pipe,
                calibration,
                steps=steps,
                speed=speed,
                budget=budget,
                call=preset.call,
                held_out=known.held_out[:check_on],
                seed=seed,
                batch_size=batch_size or min(preset.batch_size, share),
                name=name,
                store=Store() if cache else None,
                progress=report,
                **({"method": method} if method else ours),
            )
        if ranks.rank == 0:
            schedule.save(target)
    if ranks.rank == 0:
        _told(schedule, target, json)


def _told(schedule: Schedule, target: Path, json: bool) -> None:
    """Says what was fitted."""
    if json:
        evidence = (
            schedule.evidence.model_dump(by_alias=True, exclude_none=True) if schedule.evidence else None
        )
        print_json({"schedule": str(target), "name": schedule.name, "evidence": evidence})
    else:
        describe(schedule)
        out.print(f"wrote {target}")


def parsed_gears(text: str | None) -> list[float]:
    """Returns the budgets in a list that is separated by commas."""
    try:
        return [float(part) for part in text.split(",")] if text else []
    except ValueError:
        raise ValueError(f"--gears takes budgets such as 0.18,0.25,0.36,0.5, got {text!r}") from None
