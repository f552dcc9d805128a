"""Closer to the exact solution with fewer calls: `python -m benchmarks.teacher`.

Fits schedules against a teacher of 168 steps and measures them, the full run of 28 steps and schedules
fitted against that run, all against a reference of 280 steps on held-out prompts.
"""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.table import Table

from adaptcache.calibration.calibrate import calibrate
from adaptcache.evaluation.generate import Generation, generate
from adaptcache.evaluation.metrics import psnr, summary
from adaptcache.presets import resolve
from adaptcache.presets.prompts import read_prompts
from tests.calls import Call

FINEST = 10  # steps of the reference in each step


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="emoji-flux")
    parser.add_argument("--calls", type=int, nargs="+", default=[14, 10, 7])
    parser.add_argument("--eval-on", type=int, default=32)
    options = parser.parse_args()
    preset = resolve(options.model)
    known = read_prompts(preset.prompts)
    held_out, first = known.held_out[: options.eval_on], len(known.calibration)
    pipe, call = preset.load_pipeline(), Call(preset.steps, preset.call)

    def made(**how: object) -> Generation:
        return generate(pipe, call, held_out, batch_size=preset.batch_size, offset=first, **how)  # type: ignore[arg-type]

    exact = made(finer=FINEST)
    table = Table("run", "calls", "PSNR dB", "5th pct", title=f"against {FINEST * call.steps} steps")

    def show(name: str, run: Generation) -> None:
        worth = summary([psnr(a, b) for a, b in zip(run.images, exact.images, strict=True)])
        table.add_row(name, str(run.calls), f"{worth['mean']:.1f}", f"{worth['p05']:.1f}")

    show("full run", made())
    for teacher in (6 * call.steps, call.steps):
        for calls in options.calls:
            schedule = calibrate(
                pipe, known.calibration, steps=call.steps, budget=calls / call.steps, call=preset.call,
                batch_size=preset.batch_size, teacher_steps=teacher, store=Store(),
            )  # fmt: skip
            show(f"schedule, teacher of {teacher}", made(schedule=schedule))
    Console().print(table)


if __name__ == "__main__":
    main()
