"""Every method that can be named, on the demo model: `python -m benchmarks.survey`.

Runs each method of `adaptcache methods` with its own defaults or, with `--budget`, fitted to a budget on calibration
prompts, and prints PSNR against the full run on held-out prompts, and the shares of denoiser calls, of
multiplications in blocks, and of time that are left. Time is that of the processor in denoising loops on one thread,
full run and method in turn, the median of `--repeats` shares, so that other work on the machine hardly counts. Rows
that `--out` has already are not measured again: a call that was cut off goes on.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from adaptcache.calibration.methods import count_frames, fit_method
from adaptcache.comparison.trial import MacCounter
from adaptcache.engines import make_setup
from adaptcache.errors import AttachError, ScheduleError
from adaptcache.evaluation import generate as generation
from adaptcache.evaluation.generate import Generation, generate
from adaptcache.evaluation.metrics import psnr
from adaptcache.presets import read_prompts, resolve
from adaptcache.profiling.measure import measure
from adaptcache.runs import PromptSet, Setup
from adaptcache.schedule.methods import METHODS, published_sets
from adaptcache.schedule.schedule import Schedule


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="emoji-flux-32")
    parser.add_argument("--steps", type=int)
    parser.add_argument(
        "--budget", type=float, nargs="+", help="fit to these fractions; methods with nothing to fit are left out"
    )
    parser.add_argument("--trials", type=int, default=0, help="plans for each block that optuna tries")
    parser.add_argument("--calibration", type=int, default=8)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3, help="pairs of runs whose times are compared")
    parser.add_argument("--only", nargs="+", default=list(METHODS))
    parser.add_argument("--out", type=Path, help="a file of rows, kept as they are made")
    given = parser.parse_args()
    warnings.simplefilter("ignore")  # schedules without evidence are the point
    torch.set_num_threads(1)
    generation.time = SimpleNamespace(perf_counter=time.process_time)  # type: ignore[assignment,attr-defined]
    preset = resolve(given.model)
    pipe = preset.load_pipeline()
    known = read_prompts(preset.prompts)
    steps = given.steps or preset.steps
    setup = make_setup(pipe, steps, {**preset.call, "batch_size": given.prompts})
    fitted = PromptSet(tuple(known.calibration[: given.calibration]))
    held_out = PromptSet(tuple(known.held_out[: given.prompts]), len(fitted))
    with MacCounter(pipe) as counter:
        full = generate(setup, held_out)
    work, measurement = counter.work, None
    table = Table("method", "site", "dB", "5 % dB", "calls", "work", "time")
    lines = given.out.read_text().splitlines() if given.out and given.out.exists() else []
    rows = {tuple(key): row for key, row in map(json.loads, lines)}
    for name, budget in itertools.product(given.only, given.budget or [None]):
        key = (name, given.model, steps, budget, given.trials)
        try:
            if key in rows:
                schedule = None
            elif budget or METHODS[name].needs == "profile":
                measurement = measurement or measure(setup, fitted)
                params = {"trials": given.trials} if METHODS[name].policy == "table" else {}
                schedule = fit_method(measurement, name, budget or 0.5, params)
            else:
                schedule = Schedule.of(name, **published_for(name, given.model), **frames_for(name, setup, fitted))
            row = rows.get(key) or measured(setup, held_out, full, schedule, pipe, work, given.repeats)
        except (AttachError, ScheduleError, LookupError, ValueError) as error:
            print(name, error)
            continue
        table.add_row(name, METHODS[name].sites, *(f"{value:.2f}" for value in row))
        print(name, budget or "", *(f"{value:.2f}" for value in row), flush=True)
        if given.out and key not in rows:
            with given.out.open("a") as file:
                file.write(json.dumps([key, row]) + "\n")
    Console(width=120).print(table)


def published_for(name: str, model: str) -> dict[str, str]:
    """Returns whose published numbers a method takes: those of a model of the same kind, or else the first."""
    if METHODS[name].needs != "model":
        return {}
    sets = list(published_sets(METHODS[name].published))
    return {"model": next((own for own in sets if own.split("-")[0].split("2.")[0] in model), sets[0])}


def frames_for(name: str, setup: Any, prompts: PromptSet) -> dict[str, int]:
    """Returns of how many frames clips are, for methods that regularise by motion."""
    frames = count_frames(setup, prompts) if METHODS[name].policy == "codebook" else None
    return {} if frames is None else {"frames": frames}


def measured(
    setup: Setup, prompts: PromptSet, full: Generation, schedule: Schedule | None, pipe: Any, work: float, repeats: int
) -> list[float]:
    """Returns PSNR (mean, 5th percentile), and the shares of calls, of work and of time."""
    with MacCounter(pipe) as counter:
        made = generate(setup, prompts, schedule)
    shares = [generate(setup, prompts, schedule).loop / generate(setup, prompts).loop for _ in range(repeats)]
    values = np.array([psnr(a, b) for a, b in zip(made.images, full.images, strict=True)])
    return [
        float(values.mean()), float(np.percentile(values, 5)), made.calls / made.steps, counter.work / work,
        float(np.median(shares)),
    ]  # fmt: skip


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
