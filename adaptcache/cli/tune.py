"""`adaptcache tune`"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

from typer import Option

from . import options as opt
from .files import changed, default_name, load_pipeline, open_cache, quality_words, wrote
from .screen import out, print_json, progress
from .show import describe_front

if TYPE_CHECKING:
    from ..tuning.front import Front, Tuned

SHORT = {"speed": "x", "budget": "-budget", "max_calls": "-calls", "max_latency": "s", "min_psnr": "dB"}


def tune(
    model: opt.Model = opt.DEMO,
    speed: Annotated[float | None, Option(help="Steps for each call made.")] = None,
    budget: Annotated[float | None, Option(help="Fraction of the calls made.")] = None,
    max_calls: Annotated[int | None, Option(help="Denoiser calls at most.")] = None,
    max_latency: Annotated[str | None, Option(help="Time for one image at most: 1.8s, 900ms. It is measured.")] = None,
    min_psnr: Annotated[
        float | None, opt.quality(help="Decibels to be reached, with as few calls as possible.")
    ] = None,
    max_failure_rate: opt.MaxFailureRate = opt.MAX_FAILURE_RATE,
    confidence: opt.Confidence = opt.CONFIDENCE,
    trials: Annotated[
        int | None, Option(help="Trials in all. \\[default: 40; 80 for a quality; 120 for the front]")
    ] = None,
    timeout: Annotated[str | None, Option(help="Begin no trial after this time: 90s, 2h.")] = None,
    workers: Annotated[int, Option(help="Processes that share the trials.", min=1, max=256)] = 1,
    storage: Annotated[
        str | None, Option(help="URL of a database, or a journal file. \\[default: SQLite in the cache]")
    ] = None,
    resume: Annotated[bool, Option("--resume", help="Continue the trials that are there.")] = False,
    steps: opt.Steps = None,
    prompts: opt.Prompts = None,
    fit_on: Annotated[
        int, opt.prompts(help="Calibration prompts at most: half to fit on, half to select by.", min=2)
    ] = opt.FIT_ON,
    eval_on: Annotated[
        int | None,
        opt.prompts(help="Held-out prompts at most; 0 reports nothing. \\[default: 32, or all for a quality]", min=0),
    ] = None,
    seed: Annotated[int, opt.run(help="Noise of the first prompt; also of the search.")] = 0,
    batch_size: opt.BatchSize = None,
    device: opt.Device = None,
    name: opt.Name = None,
    to: opt.Out = None,
    front: Annotated[
        Path | None, opt.output(help="Where the front goes. \\[default: NAME.front.json beside it]")
    ] = None,
    plot: Annotated[Path | None, opt.output(help="Draw the front: a PNG file.")] = None,
    json: opt.Json = False,
    join: Annotated[bool, Option(hidden=True)] = False,  # a worker: makes trials, writes nothing
) -> None:
    """Find the schedule for a target by trials, starting from what calibrate finds.

    Each trial runs the model. A killed search continues with --resume. Writes
    a schedule and its front.

    \b
    Examples:
      adaptcache tune --speed 2.8                   # the demo model
      adaptcache tune --max-latency 1.8s --model flux --workers 2
      adaptcache tune --model emoji-flux-32 --prompts emoji-varied \\
        --min-psnr 35 --max-failure-rate 0.05 --eval-on 320
      adaptcache tune --plot front.png              # the whole front
    """
    from ..files import check_writable
    from ..presets import read_prompts, resolve
    from ..report.charts import check_charts
    from ..tuning.front import conclude
    from ..tuning.target import Target
    from ..tuning.tune import begin

    limit = read_seconds(max_latency) if max_latency is not None else None
    target = Target(speed, budget, max_calls, limit, min_psnr, max_failure_rate, confidence)
    preset = resolve(model)
    steps = preset.steps if steps is None else steps
    known = read_prompts(prompts or preset.prompts)
    most = (opt.EVERY if target.quality else opt.EVAL_ON) if eval_on is None else eval_on
    eval_prompts, groups = known.held_out[:most], known.groups[:most]
    target.choices(steps)  # raises before the pipeline is loaded
    if target.quality:
        target.quality.check_enough(len(eval_prompts), groups)
    given = target.given
    name = name or default_name(
        preset.name, steps, f"tuned-{getattr(target, given):.3g}{SHORT[given]}" if given else "front",
        known.name if prompts and prompts != preset.prompts else None,
        *changed(fit=(fit_on, opt.FIT_ON), eval=(eval_on, opt.EVAL_ON), seed=(seed, 0)),
        *quality_words(min_psnr, max_failure_rate, confidence)[1:],
    )  # fmt: skip
    where = check_writable(to or Path("schedules") / f"{name}.json")
    beside = check_writable(front or where.with_suffix(".front.json"))
    if plot:
        check_charts()
        check_writable(plot)
    if len({path.resolve() for path in (where, beside, plot or Path())}) < 3:
        raise ValueError(f"--out, --front and --plot need a file each, got {where}, {beside} and {plot}")
    options = {
        **vars(target), "groups": groups, "trials": trials,
        "timeout": read_seconds(timeout) if timeout is not None else None, "storage": storage,
        "resume": resume or join, "name": name, "seed": seed, "cache_dir": open_cache(),
        "batch_size": batch_size or preset.batch_size, "pipe_kwargs": preset.call,
    }  # fmt: skip
    pipe = load_pipeline(preset, device)
    kept = "finished trials are kept: continue with --resume"
    with progress(kept=kept) as report, run_workers(0 if join else workers - 1) as start:
        search = begin(
            pipe, known.calibration[:fit_on], steps, eval_prompts=eval_prompts, progress=report, **options,
        )  # fmt: skip
        start()  # not before the study and the full runs are there, so that none makes these again
        search.run()
        if join:
            return
        tuned = conclude(search)
    said = [wrote(path) for path in (where, beside)]
    tuned.schedule.save(where)
    tuned.front.save(beside)
    if plot:
        draw(tuned.front, plot)
    if json:
        print_json(summarize(tuned, where, beside))
        return
    describe_front(tuned.front)
    out.print("\n".join(["", tuned.sentence, *said]))


def summarize(tuned: Tuned, where: Path, beside: Path) -> dict[str, object]:
    """Returns what was found as JSON."""
    schedule, front = tuned.schedule, tuned.front
    evidence = schedule.evidence.data() if schedule.evidence else None
    points = [{"calls": point.calls, **point.select, "gain": point.gain} for point in front.points]
    return {
        "schedule": str(where), "name": schedule.name, "front": str(beside), "points": points,
        "gained": tuned.gained, "sentence": tuned.sentence, "study": tuned.study, "trials": front.trials,
        "evidence": evidence,
    }  # fmt: skip


def read_seconds(text: str) -> float:
    """Reads a duration: "1.8s", "1800ms", "2min", or a number of seconds."""
    found = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*(ms|s|min|h|)\s*", text)
    if not found:
        raise ValueError(f"{text[:40]!r} is no time: write 1.8s, 900ms or 2min")
    return float(found[1]) * {"ms": 1e-3, "s": 1.0, "": 1.0, "min": 60.0, "h": 3600.0}[found[2]]


def draw(front: Front, path: Path) -> Path:
    """Draws a front as a PNG file: decibels over denoiser calls."""
    from ..report.charts import build_front, write_png

    points = [(point.calls, point.select["mean"], point.gain, point.schedule.evidence) for point in front.points]
    lines: dict[str, list[tuple[float, float]]] = {
        "tuned, select prompts": [(calls, mean) for calls, mean, _, _ in points],
        "calibrate, select prompts": [(calls, mean - gain) for calls, mean, gain, _ in points],
        "tuned, held-out": [(calls, seen.psnr["mean"]) for calls, _, _, seen in points if seen],
        "5th percentile, held-out": [(calls, seen.psnr["p05"]) for calls, _, _, seen in points if seen],
    }
    lines = {name: line for name, line in lines.items() if line}
    chosen = None if front.chosen is None else lines["tuned, select prompts"][front.chosen]
    return write_png(build_front(lines, f"{front.name}: {front.target}", chosen), path)


@contextmanager
def run_workers(count: int) -> Iterator[Callable[[], None]]:
    """Gives what runs this command in `count` further processes, which share the trials until the context is closed.

    The trial of a worker that dies is made by another. The threads are shared out.
    """
    running: list[tuple[subprocess.Popen[bytes], IO[bytes]]] = []

    def start() -> None:
        if not count:
            return
        import torch

        threads = max(1, torch.get_num_threads() // (count + 1))
        torch.set_num_threads(threads)
        root = str(Path(__file__).resolve().parents[2])  # the same copy of the package, however it was found
        paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": paths}
        command = [sys.executable, "-m", "adaptcache", *sys.argv[1:], "--join"]
        for _ in range(count):
            errors = tempfile.TemporaryFile()  # not a pipe, which would be full before it is read
            nothing = subprocess.DEVNULL
            process = subprocess.Popen(command, env=environment, stdin=nothing, stdout=nothing, stderr=errors)
            running.append((process, errors))

    broken = True
    try:
        yield start
        broken = False
    finally:
        for process, errors in running:
            if broken:
                process.terminate()
            process.wait()
            with errors:
                errors.seek(0)
                lines = errors.read().decode(errors="replace").strip().splitlines()
            if process.returncode and not broken:
                last = lines[-1] if lines else f"code {process.returncode}"
                warnings.warn(f"a worker ended early ({last}); the others made its trials", stacklevel=2)
