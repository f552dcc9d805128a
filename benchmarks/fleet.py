"""Denoiser calls that calibrating and tuning make, by stage: what a fleet is planned with (docs/fleet.md).

    python -m benchmarks.fleet --prompts 4 --held-out 2 --steps 28 --calls 10 --trials 6

A call is counted once for each prompt in its batch. Counts depend on these numbers and on nothing else, so
the demo model counts for any other; only how many plans are matched, and which trials are given up early,
depends on the model.
"""

from __future__ import annotations

import argparse
from collections import Counter
from typing import Any

import adaptcache
from adaptcache.calibration.estimate import Size
from adaptcache.presets import read_prompts, resolve
from adaptcache.step import entering
from adaptcache.tuning.tune import tune


class Tally:
    """Counts the samples a denoiser is called with, by the stage that is reported next."""

    def __init__(self, denoiser: Any) -> None:
        self.stages: Counter[str] = Counter()
        self.open = 0
        denoiser.register_forward_pre_hook(self._called, with_kwargs=True)

    def _called(self, module: Any, args: Any, kwargs: Any) -> None:
        x = entering(args, kwargs)
        self.open += 0 if x is None else len(x)

    def progress(self, stage: str, done: int, of: int) -> None:
        """Books what was called since the last report."""
        self.stages[stage] += self.open
        self.open = 0


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in (("prompts", 4), ("held-out", 2), ("steps", 28), ("calls", 10), ("trials", 6)):
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    preset, known = resolve("emoji-flux-32"), read_prompts("emoji-32")
    pipe = preset.load_pipeline("cpu")
    tally = Tally(pipe.transformer)
    prompts, held_out = known.calibration[: given.prompts], known.held_out[: given.held_out]
    common: dict[str, Any] = {
        "num_inference_steps": given.steps, "pipe_kwargs": preset.call, "eval_prompts": held_out,
        "batch_size": given.prompts, "progress": tally.progress,
    }  # fmt: skip
    adaptcache.calibrate(pipe, prompts, budget=given.calls / given.steps, **common)
    each = given.prompts * given.calls
    expected = Size(given.steps, given.calls, given.prompts, given.held_out, batch_size=given.prompts).passes()
    print(f"{'calibrate':28} {'counted':>8} {'formula':>8}")
    for stage, value in expected.items():
        print(f"{stage:28} {tally.stages[stage]:8} {value:8}")
    print(f"{'in all':28} {sum(tally.stages.values()):8} {sum(expected.values()):8}")
    tally.stages.clear()
    tune(pipe, prompts, max_calls=given.calls, trials=given.trials, **common)
    print(f"\n{'tune':28} {'counted':>8}")
    for stage, value in tally.stages.items():
        print(f"{stage:28} {value:8}")
    print(f"{given.trials} trials at most {given.trials * each}: {given.prompts} prompts, {given.calls} calls")


if __name__ == "__main__":
    main()
