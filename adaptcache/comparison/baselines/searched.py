"""Fewer steps at searched noise levels: what tuning alone gives, on the calibration prompts that we get.

References:
    | Align Your Steps (Sabour et al., 2024), https://arxiv.org/abs/2404.14507 (with another objective)
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from ...engines.diffusers.sampler import is_flow, sampler, set_levels, with_grid
from ...evaluation.generate import run_latents
from ...hooks import SchedulerStep, StepHook
from ...schedule.format import EULER
from ..trial import latent_error
from .base import Baseline, Case, Params, Ready, with_scheduler
from .samplers import DPM, MultistepHook

FULL_RUNS = 24  # of all calibration prompts: the most that the search for one budget may cost
FIRST = (0.15, 0.2, 0.25, 0.3)  # shares of the run that the first step of a start takes
BENT = (0.8, 1.0)  # exponents of the others: below 1 they are denser at the end
SIZE, LEAST = 0.15, 0.005  # of the changes of the logarithm of a gap between two levels: at first, and at least
WIDER, NARROWER = 1.3, 0.93  # their factors after a gain and after a loss


@dataclass(frozen=True)
class Searched(Baseline):
    """Noise levels with which runs of as many steps as calls end nearest to the full runs.

    Arguments:
        name: What tells it apart.
        kind: The sampler, a class of diffusers.
        order: Of Adams-Bashforth, on Euler's sampler.
    """

    name: str  # type: ignore[misc]
    kind: str = EULER
    order: int = 1

    about = "fewer steps at searched noise levels"

    def find_obstacle(self, case: Case) -> str | None:
        scheduler = case.pipe.scheduler
        if not is_flow(scheduler):
            return f"needs a flow-matching scheduler, this is a {type(scheduler).__name__}"
        if scheduler.config.get("stochastic_sampling") or scheduler.config.get("invert_sigmas"):
            return "needs a deterministic sampler whose noise levels fall"
        return None

    def propose(self, case: Case) -> list[Params]:
        full, grid = run_latents(case.setup, case.prompts), self._own_levels(case, case.steps)
        found = list[Params]()
        for number, calls in enumerate(case.calls):
            own = self._own_levels(case, calls)[:-1]
            plans = [case.plans[calls]] if calls in case.plans else []
            starts = [own, *bent_levels(grid, calls), *([grid[i] for i in plan] for plan in plans)]
            best = search_levels(starts, functools.partial(self._error, case, full), FULL_RUNS * case.steps // calls)
            found += [{"levels": best}, {"levels": own}]
            case.setup.progress(f"{self.name}, searching", number + 1, len(case.calls))
        return found

    @contextmanager
    def apply(self, case: Case, params: Params) -> Iterator[Ready]:
        own = with_grid(sampler(self.kind, case.pipe.scheduler), lambda one: set_levels(one, params["levels"]))
        hook = MultistepHook(self.order) if self.order > 1 else None
        with with_scheduler(case, own):
            yield Ready(replace(case.setup.call, num_inference_steps=len(params["levels"])), hook)

    def _error(self, case: Case, full: list[Tensor], levels: Sequence[float]) -> float:
        with self.apply(case, {"levels": levels}) as ready:
            made = run_latents(replace(case.setup, call=ready.call), case.prompts, ready.hook)
        return float(np.nan_to_num(latent_error(made, full), nan=np.inf))

    def _own_levels(self, case: Case, steps: int) -> list[float]:
        """Returns the levels of the sampler's own grid with so many steps, and its last one, which is 0."""
        watcher = LevelWatcher()
        with with_scheduler(case, sampler(self.kind, case.pipe.scheduler)):
            call = replace(case.setup.call, num_inference_steps=steps)
            replace(case.setup, call=call).run(watcher, case.prompts[:1])
        return watcher.levels


class LevelWatcher(StepHook):
    """Notes the noise levels of a run."""

    def model_output(self, step: SchedulerStep) -> Tensor:
        if step.step.index == step.track == 0:
            self.levels: list[float] = step.scheduler.sigmas.tolist()  # type: ignore[attr-defined]
        return step.u


def bent_levels(grid: Sequence[float], calls: int) -> list[list[float]]:
    """Returns levels to start a search from: K of a grid of N + 1, with long first steps.

    A long first step of Euler's sampler errs as the N short ones of the full run do together.
    """
    steps, rest = len(grid) - 1, np.arange(calls - 1) / max(calls - 1, 1)
    shares = [[0.0, *(first + (1 - first) * rest**power)] for first, power in itertools.product(FIRST, BENT)]
    return [np.interp(np.multiply(steps, row), np.arange(steps + 1), grid).tolist() for row in shares]


def search_levels(
    starts: Sequence[Sequence[float]], error: Callable[[Sequence[float]], float], runs: int
) -> list[float]:
    """Returns the levels with the smallest error that an evolution strategy finds from the best of some starts.

    Models are rough in time, so derivatives say little. All gaps between levels are changed at random, by more after
    a gain and by less after a loss, so that one try in five gains; levels always fall, and the first one stays.

    Arguments:
        starts: K levels each, without the last one of a run, which is 0.
        error: What is to be small, of levels; asked for at most `runs` times.
        runs: The most runs to make.

    References:
        Beyer and Schwefel, 2002, https://doi.org/10.1023/A:1015059928466
    """
    tried = [(error(levels), list(levels)) for levels in starts[:runs]]
    least, best = min(tried, key=lambda entry: entry[0])
    dice, size = np.random.default_rng(0), SIZE
    for _ in range(runs - len(tried) if len(best) > 1 else 0):
        gaps = -np.diff([*best, 0.0]) * np.exp(size * dice.normal(size=len(best)))
        levels = (best[0] * (1 - np.cumsum([0.0, *gaps[:-1]]) / gaps.sum())).tolist()
        gains = (found := error(levels)) < least
        size = max(size * (WIDER if gains else NARROWER), LEAST)
        if gains:
            least, best = found, levels
    return best


SEARCHED = (
    Searched("Euler (searched)"),
    Searched("AB2 (searched)", order=2),
    Searched("AB3 (searched)", order=3),
    Searched("DPM++ 2M (searched)", kind=DPM.kind),
)
