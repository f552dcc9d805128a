"""A search like BudCache's: which steps to compute, by what plain reuse does to the final latents."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence
from contextlib import closing

from torch import Tensor

from ...engines.diffusers.gate import Gate
from ...forecasts.extrapolate import Extrapolate
from ...policies.mask import Mask
from ...runtime.runner import Runner
from ...schedule.rule import Rule
from ..trial import Meter
from .base import Case, Knobs
from .zoo import Zoo, even, follower

__all__ = ["BudCache", "annealed"]

TRIALS = 60  # runs for each budget
ON = 2  # calibration prompts in a run
HOT, COLD = 0.05, 1e-5  # temperatures, of the squared error over the energy
RADIUS = 3  # steps that a computed step is shifted by


class BudCache(Zoo):
    """Simulated annealing over plans with exactly as many calls, with plain reuse.

    The first quarter of the calls is fixed to the first steps, as published; the paper goes on with hill
    climbing, which the cold end of the annealing does here.

    References:
        BudCache, 2026, https://arxiv.org/abs/2606.13496
    """

    name = "BudCache-like"
    about = f"our zoo, reuse; annealing of {TRIALS} trials on {ON} prompts"

    def settings(self, case: Case) -> list[Knobs]:
        truth = finals(case, None)

        def loss(plan: Sequence[int]) -> float:
            made = finals(case, follower(self.rule(case, {"plan": plan})))
            pairs = list(zip(made, truth, strict=True))
            error = sum(float((a - b).square().sum()) for a, b in pairs)
            return error / sum(float(b.square().sum()) for _, b in pairs)

        return [{"plan": annealed(case.call.steps, calls, loss, TRIALS)} for calls in case.calls]

    def rule(self, case: Case, knobs: Knobs) -> Rule:
        plan = set(knobs["plan"])
        mask = Mask(compute_steps=tuple(i in plan for i in range(case.call.steps)))
        return Rule(policy=mask, forecast=Extrapolate(order=0))


def finals(case: Case, visitor: Runner | None) -> list[Tensor]:
    """Returns the final latents of a few calibration prompts, by track."""
    meter = Meter(visitor)
    with closing(Gate(case.pipe, meter).open()):
        case.call(case.pipe, case.prompts[:ON])
    return [track[0] for track in meter.latents]


def annealed(steps: int, calls: int, loss: Callable[[Sequence[int]], float], trials: int) -> list[int]:
    """Returns the plan with the smallest loss that simulated annealing came by.

    Arguments:
        steps: Steps of the run.
        calls: How many of them are computed.
        loss: What is to be small, of a plan.
        trials: How often the loss is asked for.
    """
    dice = random.Random(0)
    fixed = max(1, calls // 4)
    now = best = tuple(range(fixed)) + tuple(fixed + i for i in even(steps - fixed, calls - fixed))
    value = least = loss(now)
    for trial in range(trials - 1):
        heat = HOT * (COLD / HOT) ** (trial / max(1, trials - 2))
        if not (moves := neighbours(now, steps, fixed)):
            break
        plan = dice.choice(moves)
        other = loss(plan)
        if other < value or dice.random() < math.exp((value - other) / heat):
            now, value = plan, other
        if other < least:
            best, least = plan, other
    return list(best)


def neighbours(plan: tuple[int, ...], steps: int, fixed: int) -> list[tuple[int, ...]]:
    """Returns the plans in which one step, not of the first ones, is shifted a little."""
    shifts = itertools.product(plan[fixed:], range(-RADIUS, RADIUS + 1))
    return [
        tuple(sorted({*plan, step + by} - {step}))
        for step, by in shifts
        if fixed <= step + by < steps and step + by not in plan
    ]
