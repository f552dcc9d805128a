"""What the guard notices: `python -m benchmarks.guard --cache DIR`, with the cache of `benchmarks/gears.py`.

Runs the demo model by the plan of its schedule for 4x, matched on prompts of mixed difficulty, with and
without the guard, with its own weights and with noise added to them, and prints how often the guard is heard
and what it saves.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import adaptcache
from adaptcache.calibration.match import match
from adaptcache.engines.diffusers.calls import call_pipeline
from adaptcache.evaluation.metrics import psnr
from adaptcache.policies.plan import Plan
from adaptcache.runs import PromptSet
from adaptcache.schedule.schedule import Schedule
from benchmarks.gears import FIT, PlanRuns


def shaken(pipe: Any, level: float) -> None:
    """Adds noise to the matrices of the denoiser, relative to their standard deviations."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in pipe.transformer.parameters():
            if weight.ndim > 1:
                weight += level * weight.std() * torch.randn(weight.shape, generator=generator)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--schedule", type=Path, default=Path("schedules/emoji-flux-28-4x.json"))
    parser.add_argument("--prompts", type=int, default=6)
    parser.add_argument("--levels", type=float, nargs="+", default=[0.0, 0.1, 0.3])
    options = parser.parse_args()
    bench = PlanRuns(options.cache, 1.0)
    schedule = Schedule.load(options.schedule)
    rule = schedule.rules[0]
    assert isinstance(rule.policy, Plan)
    matching = match(bench.setup, bench.prompts[:FIT], schedule.steps(), bench.fitted)
    fitted = {"policy": rule.policy.with_signals(matching.seen), "forecast": matching.forecast}
    schedule = schedule.model_copy(update={"rules": (rule.model_copy(update=fitted),)})
    prompts = bench.prompts[-options.prompts :]
    table = Table("noise", "alarms", "calls", "dB without", "dB with the guard")
    warnings.simplefilter("ignore")  # that the weights are others is the point
    for level in options.levels:
        kept = {name: value.clone() for name, value in bench.pipe.transformer.state_dict().items()}
        shaken(bench.pipe, level)
        rows = []
        for prompt in prompts.batches(1):
            full, plain, guarded, report = runs(bench, schedule, prompt)
            rows.append(("guard" in report.why, report.made, psnr(plain, full), psnr(guarded, full)))
        alarms, calls, before, after = np.mean(rows, axis=0)
        cells = (f"{level:g}", f"{alarms:.0%}", f"{calls:.1f}", f"{before:.1f}", f"{after:.1f}")
        table.add_row(*cells)
        print(*cells, flush=True)
        bench.pipe.transformer.load_state_dict(kept)
    Console().print(table)


def runs(bench: PlanRuns, schedule: Schedule, prompt: PromptSet) -> tuple[Any, Any, Any, Any]:
    """Returns the images in full, by the schedule, and with the guard, and its report."""

    def made() -> Any:
        return call_pipeline(bench.pipe, bench.setup.call, prompt, "np")[0][0]

    full = made()
    with adaptcache.attach(bench.pipe, schedule):
        plain = made()
    with adaptcache.attach(bench.pipe, schedule, guard=True) as handle:
        guarded = made()
        return full, plain, guarded, handle.report()


if __name__ == "__main__":
    main()
