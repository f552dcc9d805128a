"""Fewer steps at searched noise levels: what tuning alone gives, on the calibration prompts that we get.

References:
    | Align Your Steps (Sabour et al., 2024), https://arxiv.org/abs/2404.14507 (with another objective)
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy.optimize import least_squares
from scipy.special import softmax
from torch import Tensor

from ...engines.diffusers.sampler import FLOW, is_flow, sampler
from ...fitting.kernel import Array
from ...hooks import SchedulerStep, StepHook
from ..trial import run_latents
from .base import Baseline, Case, Params, Ready, with_scheduler
from .samplers import DPM, MultistepHook

FULL_RUNS = 24  # of all calibration prompts: the most that the search for one budget may cost
FIRST = (0.15, 0.2, 0.25, 0.3)  # shares of the run that the first step of a start takes
BENT = (0.8, 1.0)  # exponents of the others: below 1 they are denser at the end
NUDGES = (0.2, 0.07, 0.02)  # of the logarithm of a gap between two levels, for derivatives
LEAST_GAIN = 1e-2  # of the squared error, relative: an iteration that gains less is the last with its nudge


@dataclass(frozen=True)
class Searched(Baseline):
    """Noise levels with which runs of as many steps as calls end nearest to the full runs.

    Arguments:
        name: What tells it apart.
        kind: The sampler, a class of diffusers.
        order: Of Adams-Bashforth, on Euler's sampler.
    """

    name: str  # type: ignore[misc]
    kind: str = FLOW
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
            search = LevelSearch(functools.partial(self._run, case), full, FULL_RUNS * case.steps // calls)
            found += [{"levels": search.find(starts)}, {"levels": own}]
            case.setup.progress(f"{self.name}, searching", number + 1, len(case.calls))
        return found

    @contextmanager
    def apply(self, case: Case, params: Params) -> Iterator[Ready]:
        own = with_levels(sampler(self.kind, case.pipe.scheduler), params["levels"])
        hook = MultistepHook(self.order) if self.order > 1 else None
        with with_scheduler(case, own):
            yield Ready(replace(case.setup.call, num_inference_steps=len(params["levels"])), hook)

    def _run(self, case: Case, levels: Sequence[float]) -> list[Tensor]:
        with self.apply(case, {"levels": levels}) as ready:
            return run_latents(replace(case.setup, call=ready.call), case.prompts, ready.hook)

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


def with_levels(scheduler: Any, levels: Sequence[float]) -> Any:
    """Returns a flow-matching scheduler that steps through these noise levels, and then to its last one."""
    base = type(scheduler)

    class Fixed(base):  # type: ignore[misc, valid-type]
        sigmas: Tensor
        timesteps: Tensor

        @functools.wraps(base.set_timesteps)  # pipelines ask for the names of its arguments
        def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
            super().set_timesteps(*args, **kwargs)
            own = torch.tensor(levels, dtype=torch.float32)
            self.sigmas = torch.cat([own.to(self.sigmas), self.sigmas[-1:]])
            self.timesteps = (own * self.config.num_train_timesteps).to(self.timesteps.device)

    Fixed.__name__ = base.__name__
    scheduler.__class__ = Fixed
    return scheduler


def bent_levels(grid: Sequence[float], calls: int) -> list[list[float]]:
    """Returns levels to start a search from: K of a grid of N + 1, with long first steps.

    A long first step of Euler's sampler errs as the N short ones of the full run do together.
    """
    steps, rest = len(grid) - 1, np.arange(calls - 1) / max(calls - 1, 1)
    shares = [[0.0, *(first + (1 - first) * rest**power)] for first, power in itertools.product(FIRST, BENT)]
    return [np.interp(np.multiply(steps, row), np.arange(steps + 1), grid).tolist() for row in shares]


class SearchOverError(Exception):
    """All runs of a search were made."""


class LevelSearch:
    """Looks for noise levels by Gauss-Newton on the final latents.

    The unknowns are the logarithms of the gaps between levels, so levels always fall; the first one stays.
    Models are rough in time: derivatives are differences, wide ones first, and the best of all runs counts.

    Arguments:
        run: Gives the final latents of a run at K levels, without the last one, which is 0.
        full: Those of the full runs.
        runs: The most runs to make.
    """

    def __init__(self, run: Callable[[Sequence[float]], list[Tensor]], full: Sequence[Tensor], runs: int) -> None:
        self.run, self.target, self.left = run, flat(full), runs
        self.best, self.least = list[float](), float("inf")

    def find(self, starts: Sequence[Sequence[float]]) -> list[float]:
        """Returns the best levels that were found from the best of some starts."""
        with suppress(SearchOverError):
            for levels in starts:
                self.error(levels)
            for nudge in NUDGES:
                self.descend(nudge)
        return self.best

    def error(self, levels: Sequence[float]) -> Array:
        """Returns the error of the final latents."""
        if not self.left:
            raise SearchOverError
        self.left -= 1
        found = np.nan_to_num(flat(self.run(levels)) - self.target, nan=1e3)
        if (size := float(np.linalg.norm(found))) < self.least:
            self.best, self.least = list(levels), size
        return found

    def descend(self, nudge: float) -> None:
        """Goes down from the best levels, with derivatives over a nudge."""
        first, gaps = self.best[0], np.log(-np.diff([*self.best, 0.0]))
        if len(gaps) < 2:
            return

        @functools.lru_cache(maxsize=1)  # asked for the error, and then for its derivatives
        def error(*unknowns: float) -> Array:
            shares = softmax([*unknowns, gaps[-1]])
            return self.error((first * (1 - np.cumsum([0.0, *shares[:-1]]))).tolist())

        def jacobian(unknowns: Array) -> Array:
            here = error(*unknowns)
            rows = unknowns + nudge * np.eye(len(unknowns))
            return np.stack([(error(*row) - here) / nudge for row in rows], axis=1)

        least_squares(lambda unknowns: error(*unknowns), gaps[:-1], jacobian, ftol=LEAST_GAIN)


def flat(latents: Sequence[Tensor]) -> Array:
    """Returns all latents in one row."""
    return np.concatenate([track.double().flatten().numpy() for track in latents])


SEARCHED = (
    Searched("Euler (searched)"),
    Searched("AB2 (searched)", order=2),
    Searched("AB3 (searched)", order=3),
    Searched("DPM++ 2M (searched)", kind=DPM.kind),
)
