"""Instant schedules for a model that the prior has never seen: `python -m benchmarks.leave_out`.

The two numbers in which models differ (what the prompt fixes, and the residual) are fitted to the kernel of each
model. Worlds lie one standard deviation above and below the mean of their logarithms, as those of the prior: of all
models, and of all but the one that is run. For each model and setting: mean PSNR in dB against the full run, on
held-out prompts, of schedules from the prior as it is, from all models and without this one, and of as many plain
steps. `--out` keeps rows in a file as they are made, and goes on where it ended.
"""

from __future__ import annotations

import itertools
import json
import warnings
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from scipy.optimize import minimize

from adaptcache import Schedule
from adaptcache.evaluation.generate import generate, reference_images
from adaptcache.fitting.instant import instant
from adaptcache.fitting.kernel import Array
from adaptcache.fitting.worlds import PRIOR, World
from adaptcache.profiling.measure import record
from adaptcache.runs import PromptSet
from adaptcache.schedule.format import Grid
from adaptcache.schedule.instant import InstantRequest, build_rule

from .instant import Case, case_parser, cases, correlations, innovations, kernel_in, read_sampler_of

LOOKS = 100.0  # what a squared error of a correlation counts beside one of an innovation in decades
SLACK = PRIOR[-1].slack  # of guidance, in the worlds where the prompt fixes much


def fit_world(kernel: Array, request: InstantRequest) -> Array:
    """Returns the logarithms of the two numbers with which a world's kernel is nearest to a measured one."""

    def distance(numbers: Array) -> float:
        if np.abs(numbers).max() > 6:
            return 1e3
        gram = kernel_in(World(prompt=float(np.exp(numbers[0])), residual=float(np.exp(numbers[1]))), request)
        apart = np.mean((correlations(gram) - correlations(kernel)) ** 2)
        return float(np.mean((innovations(gram) - innovations(kernel)) ** 2) + LOOKS * apart)

    start = np.log([World().prompt, World().residual])
    options = {"maxfev": 120, "xatol": 0.02, "fatol": 1e-3}
    return np.asarray(minimize(distance, start, method="Nelder-Mead", options=options).x)


def spread(fitted: Iterable[Array]) -> list[World]:
    """Returns the four worlds one standard deviation around the mean of fitted ones."""
    numbers = np.array(list(fitted))
    middle, apart = numbers.mean(0), numbers.std(0, ddof=1)
    return [
        World(
            prompt=float(np.exp(middle[0] + a * apart[0])),
            residual=float(np.exp(middle[1] + b * apart[1])),
            slack=SLACK if a > 0 else 0.0,
        )
        for a, b in itertools.product((-1, 1), (-1, 1))
    ]


def score(case: Case, request: InstantRequest, calls: int, worlds: Iterable[World]) -> float:
    """Returns what a schedule from some worlds reaches, in dB."""
    made = instant(
        request.sampler, calls, guidance=request.guidance, variance=request.variance, worlds=tuple(worlds)
    )  # fmt: skip
    grid = Grid(scheduler=request.scheduler, times=request.times)
    schedule = Schedule(name="leave-out", grid=grid, rules=(build_rule(made, request.times),))
    return case.score(generate(case.setup, case.prompts, schedule).images)


def main() -> None:
    """Prints the table."""
    parser = case_parser(__doc__, 4)
    parser.add_argument("--fit-on", type=int, default=8, help="calibration prompts that kernels are measured on")
    options = parser.parse_args()
    if len(options.models) < 3:
        parser.error("what models spread by needs two without the one that is run: give three or more")
    warnings.simplefilter("ignore")
    fitted = dict[str, Array]()
    for model in options.models:
        case = next(cases(model, options.emoji128, options.fit_on, ["plain"]))
        kernel = record(case.setup, PromptSet.of(case.known[: options.fit_on])).profile.kernel
        fitted[model] = fit_world(kernel, read_sampler_of(case))
        print(model, "prompt {:.2f}, residual {:.2f}".format(*np.exp(fitted[model])), flush=True)
    kept = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    print("model", "setting", "calls", "prior", "all models", "without it", "plain steps", sep=" | ")
    for row in kept:
        print(*row, sep=" | ", flush=True)
    for model, setting in itertools.product(options.models, options.settings):
        if any(row[:2] == [model, setting] for row in kept):
            continue
        ways = PRIOR, spread(fitted.values()), spread(fitted[name] for name in fitted if name != model)
        for case in cases(model, options.emoji128, options.eval_on, [setting]):
            request = read_sampler_of(case)
            asked = (max(replace(request, speed=speed).calls, request.least) for speed in options.speeds)
            for calls in dict.fromkeys(asked):
                plain = case.score(reference_images(case.fewer(calls), case.prompts))
                found = [*(score(case, request, calls, worlds) for worlds in ways), plain]
                row = [model, setting, f"{calls} of {len(request.times)}", *(f"{value:.1f}" for value in found)]
                print(*row, sep=" | ", flush=True)
                with options.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
