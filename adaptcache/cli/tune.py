"""`adaptcache tune`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .files import load_pipeline
from .options import BatchSize, Device, Model, Name, Out, Prompts, Steps
from .screen import out, print_json, progress

__all__ = ["tune"]


def tune(
    model: Model = "emoji-flux",
    speed: Annotated[float | None, typer.Option(help="Steps for each denoiser call made.")] = None,
    budget: Annotated[float | None, typer.Option(help="Fraction of the calls that are made.")] = None,
    max_calls: Annotated[int | None, typer.Option(help="Denoiser calls at most.")] = None,
    max_latency: Annotated[
        str | None, typer.Option(help="Time for one image at most: 1.8s, 900ms. It is measured.")
    ] = None,
    min_psnr: Annotated[
        float | None, typer.Option(help="Decibels prompts should reach, with as few calls as possible.")
    ] = None,
    at_most: Annotated[float, typer.Option(help="Share of prompts that may stay below --min-psnr.")] = 0.05,
    confidence: Annotated[float, typer.Option(help="How sure that has to be.")] = 0.95,
    trials: Annotated[
        int | None, typer.Option(help="Trials in all. \\[default: 40; 80 for a quality; 120 for the front]")
    ] = None,
    timeout: Annotated[str | None, typer.Option(help="Begin no trial after this time: 90s, 2h.")] = None,
    workers: Annotated[int, typer.Option(help="Processes that share the trials.", min=1, max=256)] = 1,
    storage: Annotated[
        str | None,
        typer.Option(
            help="URL of a database for optuna, or a journal file. \\[default: SQLite in the cache]"
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the trials there are.")] = False,
    steps: Steps = None,
    prompts: Prompts = None,
    fit_on: Annotated[
        int, typer.Option(help="Calibration prompts at most: half to fit on, half to select by.", min=2)
    ] = 16,
    check_on: Annotated[int, typer.Option(help="Held-out prompts at most; 0 reports nothing.", min=0)] = 32,
    seed: Annotated[int, typer.Option(help="Noise of the first prompt; also of the search.")] = 0,
    batch_size: BatchSize = None,
    device: Device = None,
    name: Name = None,
    to: Out = None,
    front: Annotated[
        Path | None, typer.Option(help="Where the front goes. \\[default: NAME.front.json beside it]")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the front: a PNG file.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    join: Annotated[bool, typer.Option(hidden=True)] = False,  # a worker: makes trials, writes nothing
) -> None:
    """Find the schedule for a target by trials, starting from what calibrate would return.

    Each trial runs the model. Killed, it goes on with --resume. Writes a schedule, and the front it is from.

    Examples:

      adaptcache tune --speed 2.8                           # the demo model

      adaptcache tune --max-latency 1.8s --model flux --workers 2

      adaptcache tune --min-psnr 35 --at-most 0.05 --prompts emoji-varied --check-on 320

      adaptcache tune --plot front.png                      # the whole front
    """
    from ..files import check_writable
    from ..presets import resolve
    from ..presets.prompts import read_prompts
    from ..profiling.cache import Store
    from ..tuning.conclude import concluded
    from ..tuning.plot import draw, drawable
    from ..tuning.target import Target, seconds
    from ..tuning.tune import begin
    from .workers import Workers

    limit = seconds(max_latency) if max_latency is not None else None
    target = Target(speed, budget, max_calls, limit, min_psnr, at_most, confidence)
    preset = resolve(model)
    steps = preset.steps if steps is None else steps
    name = name or f"{preset.name}-{steps}-{target.short}"
    where = check_writable(to or Path("schedules") / f"{name}.json")
    beside = check_writable(front or where.with_suffix(".front.json"))
    if plot:
        drawable()
        check_writable(plot)
    known = read_prompts(prompts or preset.prompts)
    held_out = known.held_out[:check_on]
    until = seconds(timeout) if timeout is not None else None
    target.check(steps, len(held_out))  # before the pipeline is loaded
    pipe = load_pipeline(preset, device)
    kept = "finished trials are kept: go on with --resume"
    with progress(kept=kept) as report, Workers(0 if join else workers - 1) as others:
        search = begin(
            pipe, known.calibration[:fit_on], target, steps=steps, call=preset.call, held_out=held_out,
            trials=trials, timeout=until, storage=storage, resume=resume or join, seed=seed,
            batch_size=batch_size or preset.batch_size, store=Store(), progress=report,
        )  # fmt: skip
        others.start()
        search.run()
        if join:
            return
        tuned = concluded(search, Store(), name)
    tuned.schedule.save(where)
    tuned.front.save(beside)
    if plot:
        draw(tuned.front, plot)
    _told(tuned, where, beside, json)


def _told(tuned: Any, where: Path, beside: Path, json: bool) -> None:
    """Says what was found."""
    schedule = tuned.schedule
    if json:
        evidence = (
            schedule.evidence.model_dump(by_alias=True, exclude_none=True) if schedule.evidence else None
        )
        points = [{"calls": point.calls, **point.select, "gain": point.gain} for point in tuned.front.points]
        print_json({"schedule": str(where), "name": schedule.name, "front": str(beside), "points": points,
                    "gained": tuned.gained, "sentence": tuned.sentence, "study": tuned.study,
                    "trials": tuned.front.trials, "evidence": evidence})  # fmt: skip
        return
    from .front import describe_front

    describe_front(tuned.front)
    out.print(f"\n{tuned.sentence}\nwrote {where} and {beside}")
