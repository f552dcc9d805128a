"""A search like BudCache's: which steps to compute, by what plain reuse does to the final latents."""

import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from ...evaluation.generate import run_latents
from ...forecasts.extrapolate import Extrapolate
from ...policies.mask import Mask
from ...schedule.rule import Rule
from ..trial import latent_error
from .base import Case, Params, even_steps
from .zoo import RuleBaseline, build_runner

TRIALS = 60  # runs for each budget
ON = 2  # calibration prompts in a run
HOT, COLD = 0.05, 1e-5  # temperatures, of the squared error over the energy
RADIUS = 3  # steps that a computed step is shifted by


class BudCache(RuleBaseline):
    """Simulated annealing over plans with exactly as many calls, with plain reuse.

    The first quarter of the calls is fixed to the first steps, as published; the paper goes on with hill
    climbing, which the cold end of the annealing does here.

    References:
        BudCache, 2026, https://arxiv.org/abs/2606.13496
    """

    name = "BudCache-like"
    about = f"our zoo, reuse; annealing of {TRIALS} trials on {ON} prompts"

    def propose(self, case: Case) -> list[Params]:
        setup, few = replace(case.setup, batch_size=ON), case.prompts[:ON]
        full = run_latents(setup, few)

        def loss(plan: Sequence[int]) -> float:
            runner = build_runner(self.build_rule(case, {"plan": plan}))
            return latent_error(run_latents(setup, few, runner), full) ** 2

        return [{"plan": anneal(case.steps, calls, loss, TRIALS)} for calls in case.calls]

    def build_rule(self, case: Case, params: Params) -> Rule:
        plan = set(params["plan"])
        mask = Mask(compute_steps=tuple(i in plan for i in range(case.steps)))
        return Rule(policy=mask, forecast=Extrapolate(order=0))


def anneal(steps: int, calls: int, loss: Callable[[Sequence[int]], float], trials: int) -> list[int]:
    """Returns the plan with the smallest loss that simulated annealing found."""
    dice = random.Random(0)
    fixed = max(1, calls // 4)
    now = best = tuple(range(fixed)) + tuple(fixed + i for i in even_steps(steps - fixed, calls - fixed))
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
