"""What instant schedules from other worlds reach on the demo models: `python -m benchmarks.worlds`.

For each model, guidance and number of calls: mean PSNR in dB against the full run, on held-out prompts, of the
schedule as it is made; of those made as if there were no guidance, and as if all of it acted in every world; and of
those from the worlds alone where prompts fix little, or much. `--prompts-apart` prints the decibels of each prompt,
and how far its first computed outputs were from their forecasts, in decades of energy: whether these tell the worlds.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from adaptcache import Schedule
from adaptcache.evaluation.generate import generate, reference_images
from adaptcache.evaluation.metrics import psnr
from adaptcache.fitting.instant import instant
from adaptcache.fitting.worlds import PRIOR
from adaptcache.hooks import SchedulerStep
from adaptcache.policies.signals import SignalSpec
from adaptcache.runtime.runner import Runner
from adaptcache.schedule.format import Grid
from adaptcache.schedule.instant import build_rule
from adaptcache.schedule.schedule import THEORY

from .instant import Case, cases, read_sampler_of

LITTLE, MUCH = PRIOR[:2], PRIOR[2:]
FULL = tuple(replace(world, slack=0.0) for world in PRIOR)
WAYS = {"as made": PRIOR, "no guidance": PRIOR, "all of it": FULL, "fix little": LITTLE, "fix much": MUCH}
LOOKS = 3  # computed steps after the first that are printed


class Watcher(Runner):
    """Keeps how far each computed step was from its forecast, for each prompt."""

    def _compare(self, step: SchedulerStep, specs: Sequence[SignalSpec]) -> None:
        super()._compare(step, specs)
        self.seen = [value.tolist() for _, value in self.innovations]


def measure(case: Case, way: str, calls: int) -> tuple[list[float], Watcher]:
    """Returns the decibels of each prompt, and the runner."""
    run = read_sampler_of(case)
    made = instant(
        run.sampler, calls, guidance=1.0 if way == "no guidance" else run.guidance, variance=run.variance,
        worlds=WAYS[way],
    )  # fmt: skip
    grid = Grid(scheduler=run.scheduler, times=run.times)
    runner = Watcher(
        Schedule(name="worlds", grid=grid, rules=(build_rule(made, run.times),), made={"evidence": THEORY})
    )
    full, images = reference_images(case.setup, case.prompts), generate(case.setup, case.prompts, runner).images
    return [psnr(a, b) for a, b in zip(images, full, strict=True)], runner


def at_guidance(case: Case, scale: float) -> Case:
    """Returns a case at another guidance scale."""
    call = case.setup.call
    name = "true_cfg_scale" if "true_cfg_scale" in call.pipe_kwargs else "guidance_scale"
    changed: dict[str, Any] = {**call.pipe_kwargs, name: scale}
    return replace(case, setup=replace(case.setup, call=replace(call, pipe_kwargs=changed)))


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["emoji-flux-32", "emoji-flux", "emoji-wan", "tones"])
    parser.add_argument("--emoji128", help="the folder of that model; its prompts lie beside it")
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 2.0, 2.5, 5.0])
    parser.add_argument("--calls", type=int, nargs="+", default=[14, 10])
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--eval-on", type=int, default=4)
    parser.add_argument("--prompts-apart", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    print("model", "guidance", "calls", "plain steps", *options.ways, sep=" | ", flush=True)
    for model in options.models:
        for scale in options.guidance:
            setting = "plain" if scale == 1 else "guided"
            for case in cases(model, options.emoji128, options.eval_on, [setting]):
                one = case if scale == 1 else at_guidance(case, scale)
                for calls in options.calls:
                    few = one.score(reference_images(one.fewer(calls), one.prompts))
                    found = [measure(one, way, calls) for way in options.ways]
                    words = [f"{np.mean(values):.1f}" for values, _ in found]
                    print(model, f"{scale:g}", calls, f"{few:.1f}", *words, sep=" | ", flush=True)
                    for number in range(options.eval_on if options.prompts_apart else 0):
                        looks = [f"{look[number]:.2f}" for look in found[0][1].seen[:LOOKS]]
                        words = [f"{values[number]:.1f}" for values, _ in found]
                        print(f"  prompt {number}:", *looks, "decades", *words, sep=" | ", flush=True)


if __name__ == "__main__":
    main()
