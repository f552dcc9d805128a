"""Fewer steps: what every cache has to beat, with samplers of first and higher order."""

from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ...engines.diffusers.sampler import sampler
from ...fitting.differences import mean_weights
from ...hooks import SchedulerStep, StepHook
from ...schedule.format import EULER
from ...step import Step
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
