"""What `calibrate --dry-run` says beside what a calibration takes: passes, seconds, memory.

    python -m benchmarks.dry_run --models emoji-flux emoji-wan tones --prompts 8 --held-out 4

Each model is calibrated in a process of its own, as peak memory only ever grows. Seconds are those that the process
had a core for, by its one thread, so that what else runs on the machine counts less.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from collections import Counter
from types import SimpleNamespace
from typing import Any

import torch

import adaptcache
from adaptcache.cache import Cache
from adaptcache.calibration import estimate as estimates
from adaptcache.calibration.calibrate import Goal
from adaptcache.calibration.estimate import Estimate, estimate, peak_memory
from adaptcache.engines import make_setup
from adaptcache.engines.diffusers.components import denoisers_of
from adaptcache.presets import read_prompts, resolve
from adaptcache.runs import PromptSet

from .fleet import Tally


class Clock(Tally):
    """Counts seconds by stage too."""

    def __init__(self, denoiser: Any) -> None:
        super().__init__(denoiser)
        self.seconds, self.since = Counter[str](), time.process_time()

    def progress(self, stage: str, done: int, of: int) -> None:
        super().progress(stage, done, of)
        self.seconds[stage] += time.process_time() - self.since  # type: ignore[assignment]
        self.since = time.process_time()


def measured(model: str, prompts: int, held_out: int) -> tuple[Estimate, Counter[str], Counter[str], int]:
    """Returns what was estimated; passes and seconds by stage, and bytes, of the calibration."""
    torch.set_num_threads(1)
    estimates.time = SimpleNamespace(perf_counter=time.process_time)  # type: ignore[assignment, attr-defined]
    preset = resolve(model)
    known, pipe = read_prompts(preset.prompts), preset.load_pipeline("cpu")
    pipe.set_progress_bar_config(disable=True)
    first, rest = known.calibration[:prompts], known.held_out[:held_out]
    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {
            "cache": Cache(folder), "batch_size": preset.batch_size, "pipe_kwargs": preset.call, "progress": False,
        }  # fmt: skip
        setup = make_setup(pipe, preset.steps, options)
        found = estimate(setup, PromptSet.of(first), PromptSet.of(rest, len(first)), Goal(speed=2.8))
        clock = Clock(denoisers_of(pipe)[0])
        adaptcache.calibrate(
            pipe, first, preset.steps, speed=2.8, eval_prompts=rest, **options | {"progress": clock.progress}
        )
    return found, clock.stages, clock.seconds, peak_memory()


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["emoji-flux", "emoji-flux-32", "emoji-wan", "tones"])
    for name, value in (("prompts", 8), ("held-out", 4)):
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    print(f"{'':32} {'passes':>7} {'counted':>7} {'said s':>8} {'took s':>8}")
    for model in given.models:
        with context.Pool(1) as pool:
            found, stages, seconds, memory = pool.apply(measured, (model, given.prompts, given.held_out))
        passes = found.size.passes()
        branches = stages["full runs"] // passes["full runs"]
        rows = [(s, passes[s] * branches, stages[s], said, seconds[s]) for s, said in found.stages.items()]
        total = (sum(passes.values()) * branches, sum(stages.values()), found.seconds, sum(seconds.values()))
        for stage, *values in (*rows, (model, *total)):
            print(f"{stage:32} {values[0]:7} {values[1]:7} {values[2]:8.1f} {values[3]:8.1f}")
        print(f"{'':32} {found.memory / 1e6:.0f} MB said, {memory / 1e6:.0f} MB had", flush=True)


if __name__ == "__main__":
    main()
