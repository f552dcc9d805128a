"""Fewer steps at searched noise levels: what tuning alone gives, on the calibration prompts that we get.

References:
    | Align Your Steps (Sabour et al., 2024), https://arxiv.org/abs/2404.14507 (searched levels, another objective)
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from scipy.optimize import least_squares
from scipy.special import softmax
from torch import Tensor

from ...engines.diffusers.sampler import FLOW, is_flow, sampler
from ...fitting.kernel import Array
from ...hooks import SchedulerStep, StepHook
from ..trial import latent_error, run_latents
from .base import Baseline, Case, Params, Ready, with_scheduler
from .samplers import MultistepHook

FULL_RUNS = 24  # of all calibration prompts: the most that the search for one budget may cost
NUDGE = 0.02  # of the logarithm of a gap between two levels, for derivatives
LEAST_GAIN = 1e-3  # of the squared error, relative: the search ends with an iteration that gains less


class Searched(Baseline):
    """Noise levels with which runs of as many steps as calls end nearest to the full runs.

    Gauss-Newton on the final latents of all calibration prompts, from the best of: the sampler's own levels, and
    those of the steps our plan computes. The unknowns are the logarithms of the gaps between levels, so levels
    always fall.
    """

    kind: ClassVar[str] = FLOW
    order: ClassVar[int] = 1  # of Adams-Bashforth, on Euler's sampler

    def find_obstacle(self, case: Case) -> str | None:
        if not is_flow(case.pipe.scheduler):
            return f"needs a flow-matching scheduler, this is a {type(case.pipe.scheduler).__name__}"
        if case.pipe.scheduler.config.get("stochastic_sampling") or case.pipe.scheduler.config.get(
            "invert_sigmas"
        ):
            return "needs a deterministic sampler whose noise levels fall"
        return None

    def propose(self, case: Case) -> list[Params]:
        full = run_latents(case.setup, case.prompts)
        grid = self._own_levels(case, case.steps)
        found = list[Params]()
        for number, calls in enumerate(case.calls):
            starts = [self._own_levels(case, calls)]
            if calls in case.plans:
                starts.append([starts[0][0], *(grid[i] for i in case.plans[calls][1:])])

            @functools.lru_cache(maxsize=2)
            def run(levels: tuple[float, ...]) -> list[Tensor]:
                with self.apply(case, {"levels": levels}) as ready:
                    return run_latents(replace(case.setup, call=ready.call), case.prompts, ready.hook)

            best = min(starts, key=lambda levels: latent_error(run(tuple(levels)), full))
            levels = search_levels(best, run, full, FULL_RUNS * case.steps // calls)
            found += [{"levels": levels}, {"levels": tuple(best)}]
            case.setup.progress(f"{self.name}, searching", number + 1, len(case.calls))
        return found

    @contextmanager
    def apply(self, case: Case, params: Params) -> Iterator[Ready]:
        own = with_levels(self._sampler(case), params["levels"])
        hook = MultistepHook(self.order) if self.order > 1 else None
        with with_scheduler(case, own):
            yield Ready(replace(case.setup.call, num_inference_steps=len(params["levels"])), hook)

    def _sampler(self, case: Case) -> Any:
        return sampler(self.kind, case.pipe.scheduler)

    def _own_levels(self, case: Case, steps: int) -> list[float]:
        """Returns the levels of the sampler's own grid with so many steps, without the last, which is 0."""
        watcher = LevelWatcher()
        with with_scheduler(case, self._sampler(case)):
            call = replace(case.setup.call, num_inference_steps=steps)
            replace(case.setup, call=call).run(watcher, case.prompts[:1])
        return watcher.levels[:-1]


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
        @functools.wraps(base.set_timesteps)  # pipelines ask for the names of its arguments
        def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
            super().set_timesteps(*args, **kwargs)
            own = torch.tensor(levels, dtype=torch.float32)
            self.sigmas = torch.cat([own.to(self.sigmas), self.sigmas[-1:]])
            self.timesteps = (own * self.config.num_train_timesteps).to(self.timesteps.device)

    Fixed.__name__ = base.__name__
    scheduler.__class__ = Fixed
    return scheduler


def search_levels(
    start: Sequence[float],
    run: Callable[[tuple[float, ...]], list[Tensor]],
    full: Sequence[Tensor],
    runs: int,
) -> tuple[float, ...]:
    """Returns noise levels with which runs end nearer to the full runs.

    Arguments:
        start: K levels, falling, without the last one of the run, which is 0. The first one stays.
        run: Gives the final latents of a run, a tensor a track; it is cached.
        full: Those of the full runs.
        runs: The most runs to make.
    """
    gaps = np.log(-np.diff([*start, 0.0]))
    target = flat(full)

    def levels(unknowns: Array) -> tuple[float, ...]:
        shares = softmax([*unknowns, gaps[-1]])  # of the way from the first level to 0
        return tuple(map(float, start[0] * (1 - np.cumsum([0.0, *shares[:-1]]))))

    def error(unknowns: Array) -> Array:
        return flat(run(levels(unknowns))) - target

    def jacobian(unknowns: Array) -> Array:
        here, nudges = error(unknowns), NUDGE * np.eye(len(unknowns))
        return np.stack([(error(unknowns + nudge) - here) / NUDGE for nudge in nudges], axis=1)

    if len(start) < 2 or (iterations := runs // len(start)) < 2:
        return tuple(start)
    found = least_squares(error, gaps[:-1], jacobian, max_nfev=iterations, ftol=LEAST_GAIN)
    return levels(found.x)


def flat(latents: Sequence[Tensor]) -> Array:
    """Returns all latents in one row."""
    return np.concatenate([track.double().flatten().numpy() for track in latents])


class SearchedEuler(Searched):
    name = "Euler, searched"
    about = "fewer steps at searched levels, Euler"


class SearchedAB2(Searched):
    name = "AB2, searched"
    about = "fewer steps at searched levels, Adams-Bashforth of order 2"
    order = 2


class SearchedAB3(Searched):
    name = "AB3, searched"
    about = "fewer steps at searched levels, Adams-Bashforth of order 3"
    order = 3


class SearchedDpm(Searched):
    """DPM-Solver++ of order 2 at searched levels."""

    name = "DPM++ 2M, searched"
    about = "fewer steps at searched levels, DPM-Solver++ of order 2"
    kind = "DPMSolverMultistepScheduler"
