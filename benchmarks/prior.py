"""What calibration gains from theory at a fixed plan: `python -m benchmarks.prior`.

For each model, number of calls and plan (the planner's, and theory's): mean PSNR in dB against the full run, on
held-out prompts, with weights matched on 1, 2, 4 and 16 calibration prompts, pulled towards the open-loop weights of
the profile (as `calibrate` does) or towards theory's, each with several strengths of the ridge; the weights of theory
alone; and what `calibrate` reaches as a whole with as many prompts (`--whole`). `--unfamiliar` tries the same weights
on prompts of other kinds (emoji-flux-32 alone).
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from unittest import mock

import numpy as np

from adaptcache import Schedule, calibrate
from adaptcache.calibration import match as matching
from adaptcache.calibration.match import Fit, match
from adaptcache.calibration.search import plans_for
from adaptcache.evaluation.generate import generate, reference_images
from adaptcache.evaluation.metrics import psnr
from adaptcache.fitting.kernel import Array
from adaptcache.profiling.measure import Measurement, measure
from adaptcache.runs import PromptSet
from adaptcache.schedule.format import Grid
from adaptcache.schedule.instant import build_rule
from adaptcache.schedule.rule import Rule

from .elsewhere import PLACES, prompts_of
from .instant import Case, cases

RIDGES = (1e-5, 1e-3, 1e-2, 1e-1)
COUNTS = (1, 2, 4, 16)
Rows = Sequence[Sequence[float]]


@dataclass(frozen=True)
class Known:
    """A case that was measured, and the prompts that schedules are tried on.

    Arguments:
        case: The model in a setting.
        prompts: The calibration prompts.
        measurement: What full runs on these gave.
        kinds: Held-out prompts, by their kind.
    """

    case: Case
    prompts: PromptSet
    measurement: Measurement
    kinds: dict[str, PromptSet]

    def score(self, rule: Rule | Schedule) -> list[str]:
        """Returns what a rule reaches on each kind of prompts: the mean, and where there are several the least."""
        grid = Grid(times=tuple(map(float, self.measurement.profile.times)))
        schedule = rule if isinstance(rule, Schedule) else Schedule(name="prior", grid=grid, rules=(rule,))
        found = []
        for prompts in self.kinds.values():
            full = reference_images(self.case.setup, prompts)
            images = generate(self.case.setup, prompts, schedule).images
            values = [psnr(a, b) for a, b in zip(images, full, strict=True)]
            found.append(f"{np.mean(values):.1f}" + f" ({min(values):.1f})" * (len(self.kinds) > 1))
        return found


@contextmanager
def pulled_towards(rows: Rows) -> Iterator[None]:
    """Makes theory's weights the target of the ridge.

    Arguments:
        rows: By step, the weights of the computed outputs, newest first, of the latents before the step and before
            the first; none where an output is used as it is.
    """

    def target(gram: Array, index: int, sources: Sequence[int], *more: float) -> Array:
        own = [1.0, *[0.0] * (len(sources) - 1)]
        return np.array(rows[index] if len(rows[index]) == len(sources) else own)

    with mock.patch.object(matching, "fit_open_loop", target):
        yield


def measure_case(case: Case, count: int, unfamiliar: bool) -> Known:
    """Returns a case with full runs on `count` calibration prompts."""
    prompts = PromptSet.of(case.known[:count])
    kinds = {"held-out": case.prompts}
    if unfamiliar:
        others = [place for place in PLACES if not place.call and place.prompts not in ("emoji-32",)]
        kinds |= {place.name: PromptSet.of(prompts_of(place, len(case.prompts)), 1000) for place in others}
    return Known(case, prompts, measure(replace(case.setup, batch_size=count), prompts), kinds)


def rows_of(known: Known, calls: int, counts: Sequence[int], ridges: Sequence[float]) -> Iterator[list[str]]:
    """Yields rows of the table for one number of calls: plan, prompts, target, strength, and decibels."""
    request = known.measurement.request
    assert request is not None, "theory knows nothing of this sampler"
    plans = {
        "planner's": next(iter(plans_for(known.measurement.profile, calls))),
        "theory's": request.make(calls).plan,
    }
    for name, plan in plans.items():
        theory = request.make(calls, plan=plan)
        yield [name, "0", "theory alone", "", *known.score(build_rule(theory, request.times))]
        for number in counts:
            measured = known.measurement.head(number)
            for ridge in ridges:
                fit = Fit(ridge=ridge)
                yield [name, str(number), "open loop", f"{ridge:g}", *known.score(
                    match(measured, plan, fit).rule
                )]  # fmt: skip
                with pulled_towards(theory.matching.rows):
                    rule = match(measured, plan, fit).rule
                yield [name, str(number), "theory", f"{ridge:g}", *known.score(rule)]


def calibrated(known: Known, calls: int, count: int) -> list[str]:
    """Returns what `calibrate` reaches with `count` prompts, at a plan of its own."""
    call = known.case.setup.call
    schedule = calibrate(
        known.case.setup.engine, known.case.known[:count], call.num_inference_steps, batch_size=count, progress=False,
        budget=calls / call.num_inference_steps, pipe_kwargs=call.pipe_kwargs, cache_dir=known.case.setup.cache,
    )  # fmt: skip
    return ["its own", str(count), "as a whole", "", *known.score(schedule)]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["emoji-flux-32", "emoji-flux", "emoji-wan", "tones"])
    parser.add_argument("--emoji128", help="the folder of that model; its prompts lie beside it")
    parser.add_argument("--setting", default="plain", help="as of benchmarks.instant")
    parser.add_argument("--calls", type=int, nargs="+", default=[14, 10])
    parser.add_argument("--counts", type=int, nargs="+", default=list(COUNTS), help="calibration prompts")
    parser.add_argument("--ridges", type=float, nargs="+", default=list(RIDGES))
    parser.add_argument("--eval-on", type=int, default=8)
    parser.add_argument("--whole", action="store_true", help="calibrate as a whole too, plan included")
    parser.add_argument("--unfamiliar", action="store_true", help="try prompts of other kinds too")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    for model in options.models:
        for case in cases(model, options.emoji128, options.eval_on, [options.setting]):
            known = measure_case(case, max(options.counts), options.unfamiliar)
            print("model", "calls", "plan", "prompts", "target", "ridge", *known.kinds, sep=" | ", flush=True)
            for calls in options.calls:
                for row in rows_of(known, calls, options.counts, options.ridges):
                    print(model, calls, *row, sep=" | ", flush=True)
                for count in options.counts if options.whole else ():
                    print(model, calls, *calibrated(known, calls, count), sep=" | ", flush=True)


if __name__ == "__main__":
    main()
