"""Fewer steps: the baseline that every cache has to beat, with samplers of first and second order."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor

from ...engines.diffusers.sampler import FLOW, sampler
from ...hooks import Update
from ...step import Step
from .base import Case, Knobs, Peer, Ready

__all__ = ["AdamsBashforth", "Dpm", "Fewer", "UniPC"]


class Fewer(Peer):
    """The pipeline's own sampler with as many steps as there are calls."""

    name = "fewer steps"
    about = "the pipeline's own sampler"
    baseline = True

    def settings(self, case: Case) -> list[Knobs]:
        return [{"steps": calls} for calls in case.calls]

    @contextmanager
    def applied(self, case: Case, knobs: Knobs) -> Iterator[Ready]:
        yield Ready(replace(case.call, steps=knobs["steps"]))


class AdamsBashforth(Peer):
    """Adams-Bashforth of order 2, on as many even steps as there are calls, or on our plan's steps."""

    name = "AB2"
    about = "fewer steps, Adams-Bashforth of order 2"

    def missing(self, case: Case) -> str | None:
        kind = type(case.pipe.scheduler).__name__
        return None if kind == FLOW else f"needs a {FLOW}, this is a {kind}"

    def settings(self, case: Case) -> list[Knobs]:
        even: list[Knobs] = [{"steps": calls} for calls in case.calls]
        return even + [{"plan": list(case.plans[calls])} for calls in case.calls if calls in case.plans]

    @contextmanager
    def applied(self, case: Case, knobs: Knobs) -> Iterator[Ready]:
        steps = knobs.get("steps", case.call.steps)
        yield Ready(replace(case.call, steps=steps), Line(knobs.get("plan", range(steps))))


class Line:
    """Puts a line through the last two computed outputs and follows it to the next.

    Each step is given the line's value in its middle, so that the steps between two computed ones add
    up to the integral of the line: one step of Adams-Bashforth.
    """

    def __init__(self, plan: Any) -> None:
        self.plan = set(plan)

    def begin(self, times: tuple[float, ...]) -> None:
        self.known: list[tuple[float, Tensor]] = []

    def computes(self, step: Step) -> bool:
        return step.index in self.plan

    def update(self, update: Update) -> Tensor:
        sigmas = update.move.scheduler.sigmas
        here, after = (float(sigmas[update.step.index + k]) for k in (0, 1))
        if update.computed:
            self.known = [(here, update.move.u), *self.known[:1]]
        (s, u), *older = self.known
        if not older:
            return u
        slope = (u - older[0][1]) / (s - older[0][0])
        return u + ((here + after) / 2 - s) * slope

    def end(self) -> None:
        self.known = []


class Multistep(Peer):
    """A multistep sampler of diffusers in the pipeline's stead, with its orders."""

    kind: ClassVar[str]

    def missing(self, case: Case) -> str | None:
        try:
            sampler(self.kind, case.pipe.scheduler)
        except ValueError as error:
            return str(error)
        return None

    def settings(self, case: Case) -> list[Knobs]:
        both = itertools.product(case.calls, (1, 2, 3) if self.kind.startswith("UniPC") else (2,))
        return [{"steps": calls, "solver_order": order} for calls, order in both]

    @contextmanager
    def applied(self, case: Case, knobs: Knobs) -> Iterator[Ready]:
        before = case.pipe.scheduler
        case.pipe.scheduler = sampler(self.kind, before, solver_order=knobs["solver_order"])
        try:
            yield Ready(replace(case.call, steps=knobs["steps"]))
        finally:
            case.pipe.scheduler = before


class UniPC(Multistep):
    """UniPC (Zhao et al., 2023), https://arxiv.org/abs/2302.04867"""

    name = "UniPC"
    about = "fewer steps, UniPC"
    kind = "UniPCMultistepScheduler"


class Dpm(Multistep):
    """DPM-Solver++ 2M (Lu et al., 2022), https://arxiv.org/abs/2211.01095"""

    name = "DPM++ 2M"
    about = "fewer steps, DPM-Solver++ of order 2"
    kind = "DPMSolverMultistepScheduler"
