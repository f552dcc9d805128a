"""What `calibrate --dry-run` says beside what a calibration takes: passes, seconds, memory.

    python -m benchmarks.dry_run --models emoji-flux-32 emoji-wan tones --prompts 8 --held-out 4

Each model is calibrated in a process of its own, as peak memory only ever grows.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from collections import Counter
from typing import Any

import adaptcache
from adaptcache.cache import Cache
from adaptcache.calibration.calibrate import calls_for
from adaptcache.calibration.estimate import LIKELY, Estimate, estimate, peak_memory
from adaptcache.engines import make_setup
from adaptcache.engines.diffusers.components import denoisers_of
from adaptcache.presets import read_prompts, resolve
from adaptcache.runs import PromptSet

from .fleet import Tally


def measured(model: str, prompts: int, held_out: int) -> tuple[Estimate, Counter[str], float, int, tuple[int, int]]:
    """Returns what was estimated; passes by stage, seconds and bytes of the calibration; plans and branches."""
    preset = resolve(model)
    known, pipe = read_prompts(preset.prompts), preset.load_pipeline("cpu")
    pipe.set_progress_bar_config(disable=True)
    first, rest = known.calibration[:prompts], known.held_out[:held_out]
    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {
            "cache": Cache(folder), "batch_size": preset.batch_size, "pipe_kwargs": preset.call, "progress": False,
        }  # fmt: skip
        setup, _ = make_setup(pipe, preset.steps, options)
        calls = calls_for(preset.steps, speed=2.8)
        found = estimate(setup, PromptSet.of(first), PromptSet.of(rest, len(first)), calls)
        tally = Tally(denoisers_of(pipe)[0])
        since = time.perf_counter()
        adaptcache.calibrate(
            pipe, first, preset.steps, speed=2.8, eval_prompts=rest, **options | {"progress": tally.progress}
        )
        seconds = time.perf_counter() - since
    branches = tally.stages["full runs"] // (len(first) * preset.steps)
    plans = -(-tally.stages[f"matching {calls} calls"] // (len(first) * calls * branches))  # beginnings are shared
    return found, tally.stages, seconds, peak_memory(), (plans, branches)


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["emoji-flux-32", "emoji-wan", "tones"])
    for name, value in (("prompts", 8), ("held-out", 4)):
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    heads = ("passes", "counted", "plans", "said s", "took s", "said MB", "had MB")
    print(f"{'model':12} {' '.join(f'{head:>8}' for head in heads)}")
    for model in given.models:
        with context.Pool(1) as pool:
            found, stages, seconds, memory, (plans, branches) = pool.apply(
                measured, (model, given.prompts, given.held_out)
            )
        likely, least, most = found.seconds
        said = likely + (plans - LIKELY) * (most - least) / 5  # for as many plans as there were
        passes = branches * sum(found.size.passes(plans).values())
        print(
            f"{model:12} {passes:8} {sum(stages.values()):8} {plans:8} {said:8.1f} {seconds:8.1f} "
            f"{found.memory / 1e6:8.0f} {memory / 1e6:8.0f}",
            flush=True,
        )
        print(f"{'':12} {dict(stages)}", flush=True)


if __name__ == "__main__":
    main()
