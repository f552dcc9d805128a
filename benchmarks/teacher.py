"""Closer to the exact solution with fewer calls: `python -m benchmarks.teacher`.

Fits schedules against a reference of 168 steps and measures them, the full run of 28 steps and schedules
fitted against that run, all against a run of 280 steps on held-out prompts.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

from rich.console import Console
from rich.table import Table

from adaptcache import calibrate
from adaptcache.cache import Cache
from adaptcache.engines import make_setup
from adaptcache.evaluation.generate import Generation, generate
from adaptcache.evaluation.metrics import psnr, summary
from adaptcache.presets import read_prompts, resolve
from adaptcache.runs import PromptSet

FINEST = 10  # steps of the exact run in each step


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="emoji-flux-32")
    parser.add_argument("--calls", type=int, nargs="+", default=[14, 10, 7])
    parser.add_argument("--eval-on", type=int, default=32)
    options = parser.parse_args()
    preset = resolve(options.model)
    known, steps, pipe = read_prompts(preset.prompts), preset.steps, preset.load_pipeline()
    runs: dict[str, Any] = {"pipe_kwargs": preset.call, "batch_size": preset.batch_size, "cache_dir": Cache()}
    setup = make_setup(pipe, steps, runs)
    eval_prompts = PromptSet.of(known.held_out[: options.eval_on], len(known.calibration))
    exact = generate(replace(setup, refine=FINEST), eval_prompts, reference=True)
    table = Table("run", "calls", "PSNR dB", "5th pct", title=f"against {FINEST * steps} steps")

    def show(name: str, run: Generation) -> None:
        worth = summary([psnr(a, b) for a, b in zip(run.images, exact.images, strict=True)])
        table.add_row(name, f"{run.calls:g}", f"{worth['mean']:.1f}", f"{worth['p05']:.1f}")

    show("full run", generate(setup, eval_prompts))
    for reference in (6 * steps, steps):
        for calls in options.calls:
            schedule = calibrate(
                pipe, known.calibration, steps, budget=calls / steps, reference_steps=reference, **runs
            )
            show(f"schedule, reference of {reference}", generate(setup, eval_prompts, schedule))
    Console().print(table)


if __name__ == "__main__":
    main()
