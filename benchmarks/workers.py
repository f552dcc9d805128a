"""One worker against several on one storage: `python -m benchmarks.workers`.

Worker processes tune the demo model together, on the SQLite file in a cache folder that has its full runs
already. What is compared is the time of the trials, and whether one was made twice. Wants an idle machine.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from adaptcache.presets import read_prompts, resolve
from adaptcache.tuning.evaluator import Candidate
from adaptcache.tuning.study import Search
from adaptcache.tuning.tune import begin


def searching(pipe: Any, preset: Any, prompts: list[str], folder: Path, trials: int, seed: int) -> Search:
    """Returns a search on the storage of a folder."""
    return begin(
        pipe, prompts, preset.steps, speed=2.8, pipe_kwargs=preset.call, trials=trials, seed=seed,
        batch_size=8, resume=True, cache_dir=folder, progress=False,
    )  # fmt: skip


def together(count: int, *given: Any) -> float:
    """Runs so many workers, each in a process, and returns the seconds from the start of the last one's."""
    children, gates = [], []
    for _ in range(count):
        (ready, tell_ready), (start, tell_start) = os.pipe(), os.pipe()
        child = os.fork()
        if child == 0:
            search = searching(*given)
            os.write(tell_ready, b"x")
            os.read(start, 1)
            search.run()
            os._exit(0)
        children.append(child)
        gates.append((ready, tell_start))
    for ready, _ in gates:
        os.read(ready, 1)
    since = time.perf_counter()
    for _, tell_start in gates:
        os.write(tell_start, b"x")
    for child in children:
        os.waitpid(child, 0)
    return time.perf_counter() - since


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--prompts", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(1)  # threads of a pool do not live on in a fork, which would wait for them
    preset = resolve("emoji-flux-32")
    prompts, pipe = (
        list(read_prompts(preset.prompts).calibration[: options.prompts]),
        preset.load_pipeline("cpu"),
    )
    pipe.set_progress_bar_config(disable=True)
    table = Table("workers", "seconds", "factor", "trials", "made twice")
    with tempfile.TemporaryDirectory() as place:
        alone = 0.0
        for count in (1, options.workers):
            folder = Path(place) / str(count)
            given = (pipe, preset, prompts, folder, options.trials, 0)
            if os.fork() == 0:  # makes the full runs, and is gone
                searching(*given)
                os._exit(0)
            os.wait()
            seconds = together(count, *given)
            alone = alone or seconds
            made = searching(*given).finished
            twice = len(made) - len({Candidate.suggest(trial, preset.steps) for trial in made})
            table.add_row(str(count), f"{seconds:.1f}", f"{alone / seconds:.2f}", str(len(made)), str(twice))
    Console().print(table)


if __name__ == "__main__":
    main()
