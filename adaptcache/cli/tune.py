"""`adaptcache tune`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .files import load_pipeline, open_cache, wrote
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
    max_failure_rate: Annotated[float, typer.Option(help="Share of prompts that may stay below it.")] = 0.05,
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
    eval_on: Annotated[int, typer.Option(help="Held-out prompts at most; 0 reports nothing.", min=0)] = 32,
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

      adaptcache tune --min-psnr 35 --max-failure-rate 0.05 --prompts emoji-varied --eval-on 320

      adaptcache tune --plot front.png                      # the whole front
    """
    from dataclasses import fields

    from ..files import check_writable
    from ..presets import read_prompts, resolve
    from ..report.charts import check_charts
    from ..tuning.front import conclude
    from ..tuning.target import Target, parse_seconds
    from ..tuning.tune import begin
    from .workers import Workers

    limit = parse_seconds(max_latency) if max_latency is not None else None
    target = Target(speed, budget, max_calls, limit, min_psnr, max_failure_rate, confidence)
    preset = resolve(model)
    steps = preset.steps if steps is None else steps
    name = name or f"{preset.name}-{steps}-{target.short}"
    where = check_writable(to or Path("schedules") / f"{name}.json")
    beside = check_writable(front or where.with_suffix(".front.json"))
    if plot:
        check_charts()
        check_writable(plot)
    known = read_prompts(prompts or preset.prompts)
    held_out = known.held_out[:eval_on]
    until = parse_seconds(timeout) if timeout is not None else None
    target.choices(steps)  # raises before the pipeline is loaded
    if target.quality:
        target.quality.check_enough(len(set(known.groups[:eval_on])) or len(held_out))
    cache = open_cache()
    pipe = load_pipeline(preset, device)
    kept = "finished trials are kept: go on with --resume"
    with progress(kept=kept) as report, Workers(0 if join else workers - 1) as others:
        search = begin(
            pipe, known.calibration[:fit_on], steps, eval_prompts=held_out, pipe_kwargs=preset.call,
            **{one.name: getattr(target, one.name) for one in fields(target)}, groups=known.groups[:eval_on],
            trials=trials, timeout=until, storage=storage, resume=resume or join, seed=seed, name=name,
            batch_size=batch_size or preset.batch_size, cache=cache, progress=report,
        )  # fmt: skip
        others.start()
        search.run()
        if join:
            return
        tuned = conclude(search)
    said = f"{wrote(where)} and {beside}"
    tuned.schedule.save(where)
    tuned.front.save(beside)
    if plot:
        draw_points(tuned.front, plot)
    _told(tuned, where, beside, said, json)


def draw_points(front: Any, path: Path) -> None:
    """Draws decibels over denoiser calls."""
    from ..report.charts import draw_front

    points = front.points
    lines = {"tuned, select prompts": [(one.calls, one.select["mean"]) for one in points]}
    lines["calibrate, select prompts"] = [(one.calls, one.select["mean"] - one.gain) for one in points]
    seen = [(one.calls, one.schedule.evidence.psnr) for one in points if one.schedule.evidence]
    if seen:
        lines["tuned, held-out"] = [(calls, psnr["mean"]) for calls, psnr in seen]
        lines["5th percentile, held-out"] = [(calls, psnr["p05"]) for calls, psnr in seen]
    chosen = None if front.chosen is None else points[front.chosen]
    mark = (chosen.calls, chosen.select["mean"]) if chosen else None
    draw_front(lines, path, f"{front.name}: {front.target}", mark)


def _told(tuned: Any, where: Path, beside: Path, said: str, json: bool) -> None:
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
    out.print(f"\n{tuned.sentence}\n{said}")
