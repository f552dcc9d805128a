"""Fewer steps: what every cache has to beat, with samplers of first and higher order, published and searched grids.

References:
    | Align Your Steps (Sabour et al., 2024), https://arxiv.org/abs/2404.14507
"""

import functools
import inspect
import itertools
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from ...engines.diffusers.sampler import is_flow, sampler, set_levels, with_grid
from ...evaluation.generate import run_latents
from ...fitting.differences import mean_weights
from ...fitting.kernel import Array
from ...hooks import SchedulerStep, StepHook
from ...schedule.format import EULER
from ...step import Step
from ..trial import latent_error
from .base import Baseline, Case, Params, Ready, product_of, with_scheduler


class Fewer(Baseline):
    """The pipeline's own sampler with as many steps as there are calls."""

    name = "fewer steps"
    about = "the pipeline's own sampler"
    takes_all_calls = True

    def propose(self, case: Case) -> list[Params]:
        return [{"steps": calls} for calls in case.calls]

    @contextmanager
    def apply(self, case: Case, params: Params) -> Iterator[Ready]:
        yield Ready(replace(case.setup.call, num_inference_steps=params["steps"]))


class AdamsBashforth(Baseline):
    """Adams-Bashforth of order 2, on as many even steps as there are calls, or on our plan's steps."""

    name = "AB2"
    about = "fewer steps, Adams-Bashforth of order 2"

    def find_obstacle(self, case: Case) -> str | None:
        kind = type(case.pipe.scheduler).__name__
        return None if kind == EULER else f"needs a {EULER}, this is a {kind}"

    def propose(self, case: Case) -> list[Params]:
        even: list[Params] = [{"steps": calls} for calls in case.calls]
        return even + [{"plan": list(case.plans[calls])} for calls in case.calls if calls in case.plans]

    @contextmanager
    def apply(self, case: Case, params: Params) -> Iterator[Ready]:
        steps = params.get("steps", case.steps)
        yield Ready(replace(case.setup.call, num_inference_steps=steps), MultistepHook(2, params.get("plan")))


class MultistepHook(StepHook):
    """Makes Euler's sampler one of Adams-Bashforth, on any grid of noise levels.

    Each step is given the mean, over its noise levels, of the polynomial through the last computed outputs:
    the steps between two computed ones add up to the polynomial's integral.

    Arguments:
        order: How many outputs are used.
        plan: The numbers of the computed steps; None computes all.
    """

    def __init__(self, order: int, plan: Sequence[int] | None = None) -> None:
        self.order, self.plan = order, plan
        self.on_run_end()

    def should_compute(self, step: Step) -> bool:
        return self.plan is None or step.index in self.plan

    def model_output(self, step: SchedulerStep) -> Tensor:
        scheduler: Any = step.scheduler  # type: ignore[attr-defined]
        at = step.step.index + (scheduler.begin_index or 0)
        here, after = map(float, scheduler.sigmas[at : at + 2])
        known = self.known[step.track, step.view]
        if step.computed:
            known[:] = [(here, step.u), *known[: self.order - 1]]
        weights = mean_weights([level for level, _ in known], here, after)
        return sum((w * u for w, (_, u) in zip(weights, known, strict=True)), 0 * step.u)

    def on_run_end(self) -> None:
        self.known: dict[Hashable, list[tuple[float, Tensor]]] = defaultdict(list)  # by track and view


@dataclass(frozen=True)
class Multistep(Baseline):
    """A multistep sampler of diffusers instead of the pipeline's own, with its orders."""

    name: str  # type: ignore[misc]
    about: str  # type: ignore[misc]
    kind: str
    orders: tuple[int, ...]

    def find_obstacle(self, case: Case) -> str | None:
        try:
            sampler(self.kind, case.pipe.scheduler)
        except ValueError as error:
            return str(error)
        return None

    def propose(self, case: Case) -> list[Params]:
        return product_of(steps=case.calls, solver_order=self.orders)

    @contextmanager
    def apply(self, case: Case, params: Params) -> Iterator[Ready]:
        own = sampler(self.kind, case.pipe.scheduler, solver_order=params["solver_order"])
        with with_scheduler(case, own):
            yield Ready(replace(case.setup.call, num_inference_steps=params["steps"]))


# Zhao et al., 2023, https://arxiv.org/abs/2302.04867, and Lu et al., 2022, https://arxiv.org/abs/2211.01095
UNIPC = Multistep("UniPC", "fewer steps, UniPC", "UniPCMultistepScheduler", (1, 2, 3))
DPM = Multistep("DPM++ 2M", "fewer steps, DPM-Solver++ of order 2", "DPMSolverMultistepScheduler", (2,))


# Published grids

GRIDS = {
    "StableDiffusion3": "",
    "StableDiffusionXL": "StableDiffusionXLTimesteps",
    "StableDiffusion": "StableDiffusionTimesteps",
    "StableVideoDiffusion": "StableDiffusionVideoSigmas",
}


class AlignYourSteps(Baseline):
    """Fewer steps on the published grids, moved to other step counts along log-linear noise levels."""

    name = "AYS"
    about = "fewer steps on a published grid, the pipeline's own sampler and DPM-Solver++"

    def find_obstacle(self, case: Case) -> str | None:
        if not (grid := grid_of(case.pipe)):
            return f"no grid was published for {type(case.pipe).__name__}"
        if grid.endswith("Timesteps") and not hasattr(case.pipe.scheduler, "alphas_cumprod"):
            return f"the grid is for other noise levels than those of {type(case.pipe.scheduler).__name__}"
        return None

    def propose(self, case: Case) -> list[Params]:
        name, own = grid_of(case.pipe), case.pipe.scheduler
        from diffusers.schedulers import AysSchedules

        grid = AysSchedules[name]
        if name.endswith("Sigmas"):
            levels = np.log(grid[:-1])
            return [
                {"steps": calls, "sigmas": [*np.exp(stretch(levels, calls)).tolist(), 0.0]} for calls in case.calls
            ]
        takes_timesteps = "timesteps" in inspect.signature(own.set_timesteps).parameters
        kinds = dict.fromkeys([DPM.kind, *[type(own).__name__] * takes_timesteps])  # the grids were made for the first
        levels = log_levels(own)
        found = list[Params]()
        for calls in case.calls:
            wanted = stretch(levels[grid], calls)
            steps = np.interp(wanted, levels, np.arange(len(levels))).round().astype(int).tolist()
            found += [{"steps": calls, "timesteps": steps, "sampler": kind} for kind in kinds]
        return found

    @contextmanager
    def apply(self, case: Case, params: Params) -> Iterator[Ready]:
        grid = {name: params[name] for name in ("sigmas", "timesteps") if name in params}
        call = replace(
            case.setup.call, num_inference_steps=params["steps"], pipe_kwargs={**case.setup.call.pipe_kwargs, **grid}
        )
        before = case.pipe.scheduler
        own = sampler(params["sampler"], before, use_karras_sigmas=False) if "sampler" in params else before
        with with_scheduler(case, own):
            yield Ready(call)


def grid_of(pipe: Any) -> str:
    """Returns the name of the grid in diffusers' `AysSchedules`; empty where there is none."""
    kind = type(pipe).__name__
    return next((grid for start, grid in GRIDS.items() if kind.startswith(start)), "")


def log_levels(scheduler: Any) -> Array:
    """Returns the logarithm of the noise over the signal, by timestep, rising."""
    kept = scheduler.alphas_cumprod.double().cpu().numpy()
    return np.asarray(np.log((1 - kept) / kept) / 2)


def stretch(values: Sequence[float] | Array, count: int) -> Array:
    """Returns so many values, linearly interpolated by their numbers."""
    return np.interp(np.linspace(0, 1, count), np.linspace(0, 1, len(values)), values)


# Searched noise levels: what tuning alone gives, on the calibration prompts that we get. The same question as that of
# Align Your Steps, with another objective.

FULL_RUNS = 24  # of all calibration prompts: the most that the search for one budget may cost
FIRST = (0.15, 0.2, 0.25, 0.3)  # shares of the run that the first step of a start takes
BENT = (0.8, 1.0)  # exponents of the others: below 1 they are denser at the end
SIZE, LEAST = 0.15, 0.005  # of the changes of the logarithm of a gap between two levels: at first, and at least
WIDER, NARROWER = 1.3, 0.93  # their factors after a gain and after a loss


@dataclass(frozen=True)
class Searched(Baseline):
    """Noise levels with which runs of as many steps as calls end nearest to the full runs.

    With a sampler of diffusers, or Adams-Bashforth of an order on Euler's.
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
