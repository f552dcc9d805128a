"""Published methods through the code that runs them here: a site, a policy and a forecast."""

import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from pydantic import PrivateAttr
from torch import Tensor

from ...calibration.methods import fit_method
from ...errors import AttachError
from ...evaluation.generate import run_latents
from ...fitting.kernel import pair_errors
from ...fitting.plan import best_plan
from ...fitting.polynomial import fit_rising
from ...forecasts.extrapolate import Extrapolate
from ...forecasts.matched import Matched
from ...policies import POLICIES
from ...policies.mask import Mask
from ...policies.plan import Plan
from ...policies.polynomial import Polynomial
from ...policies.uniform import Uniform
from ...profiling.measure import Measurement
from ...runtime.runner import Runner
from ...schedule import Grid, Rule, Schedule
from ...schedule.methods import METHODS, build_rules
from ...sites.denoisers import find_spec
from ...step import Step, relative_change, worst
from ..trial import latent_error
from .base import Baseline, Case, Params, Ready, even_steps, nearest_plans, planned_steps, product_of
from .caches import SEA_THRESHOLDS

NEAR = 2  # plans tried for each budget
SHARES = 1.0, 0.85, 0.7  # of a budget, that named methods are fitted to


class RuleBaseline(Baseline):
    """A method that runs here as a rule."""

    package = "adaptcache"
    method: ClassVar[str] = ""  # its name in `adaptcache methods`
    inside: ClassVar[bool] = False  # whether the site lies in the denoiser's blocks

    def find_obstacle(self, case: Case) -> str | None:
        if self.inside:
            try:
                find_spec(case.denoisers[0])
            except AttachError as error:
                return str(error).partition(",")[0]
        return None

    def build_rule(self, case: Case, params: Params) -> Rule:
        """Returns the rule with these parameters."""
        return build_rules(self.method, **params)[0]

    @contextmanager
    def apply(self, case: Case, params: Params) -> Iterator[Ready]:
        times = tuple(map(float, case.profile.times)) if self.profiled else ()
        yield Ready(case.setup.call, build_runner(self.build_rule(case, params), times))


def build_runner(rule: Rule, times: tuple[float, ...] = ()) -> Runner:
    """Returns the hook that follows a rule, on the grid it was fitted on if it was."""
    return Runner(Schedule(name="baseline", grid=Grid(times=times), rules=(rule,)), gear=0)


class NamedMethod(Baseline):
    """A method of `adaptcache methods` by its name there, fitted to the budget on the calibration prompts."""

    package = "adaptcache"
    about = "our zoo, fitted to the budget"
    profiled = True

    def __init__(self, name: str) -> None:
        self.name = name  # type: ignore[misc]
        self.per_prompt = not POLICIES[METHODS[name].policy].static  # type: ignore[misc]
        self.fitted: dict[float, Schedule] = {}

    def propose(self, case: Case) -> list[Params]:
        """Returns the budgets, and some below them, as a run may spend more than its calibration."""
        budgets = [calls / case.steps * share for calls in case.calls for share in SHARES]
        measurement = Measurement(case.setup, case.prompts, case.profile)
        for budget in budgets:
            self.fitted[budget] = fit_method(measurement, self.name, budget)
        return [{"budget": budget} for budget in budgets]

    @contextmanager
    def apply(self, case: Case, params: Params) -> Iterator[Ready]:
        yield Ready(case.setup.call, Runner(self.fitted[params["budget"]], gear=0))


class EasyCache(RuleBaseline):
    """Zhou et al., 2025, https://arxiv.org/abs/2507.02860"""

    name = "EasyCache"
    method = "easycache"
    about = "our zoo; decides for each prompt"
    per_prompt = True
    threshold = "threshold"
    settings: ClassVar = {"threshold": (0.02, 0.06, 0.2, 0.6, 2.0), "warm_up": (2, 5)}


class DiCache(RuleBaseline):
    """Bu et al., 2025, https://arxiv.org/abs/2508.17356"""

    name = "DiCache"
    method = "dicache"
    about = "our zoo, one block as a probe; decides for each prompt"
    inside = per_prompt = probes = True
    threshold = "threshold"
    settings: ClassVar = {"threshold": (0.05, 0.15, 0.4, 1.2, 4.0), "warm_up": (1, 3)}


class SeaHere(RuleBaseline):
    """The same decision on the latents, in front of the denoiser."""

    name = "SeaCache (zoo)"
    method = "seacache"
    about = "our zoo, on the latents; decides for each prompt"
    per_prompt = True
    threshold = "threshold"

    def propose(self, case: Case) -> list[Params]:
        place = find_token_grid(case)
        return [{**params, **place} for params in product_of(threshold=SEA_THRESHOLDS, order=(0, 1))]


def find_token_grid(case: Case) -> dict[str, Any]:
    """Returns the positions of the tokens, for pipelines whose latents are a sequence of square patches."""
    size = [case.setup.call.pipe_kwargs.get(name) for name in ("height", "width")]
    if not hasattr(case.pipe, "_pack_latents") or None in size:
        return {}
    patch = 2 * int(getattr(case.pipe, "vae_scale_factor", 8))
    return {"grid": tuple(int(side) // patch for side in size if side)}


class HiCache(RuleBaseline):
    """Feng et al., 2025, https://arxiv.org/abs/2508.16984"""

    name = "HiCache"
    method = "hicache"
    about = "our zoo, the output of the denoiser"

    def propose(self, case: Case) -> list[Params]:
        plans: dict[tuple[int, ...], Params] = {}
        for interval, warm_up in itertools.product(range(2, 11), range(1, 6)):
            plan = planned_steps(Uniform(interval=interval, warm_up=warm_up), case.steps)
            plans.setdefault(plan, {"interval": interval, "warm_up": warm_up})
        forecasts = product_of(order=(1, 2), scale=(0.5, 0.7))
        return [{**plan, **forecast} for plan in nearest_plans(plans, case.calls, NEAR) for forecast in forecasts]


class Learned(RuleBaseline):
    """Linear weights fitted to full runs, 2026, https://arxiv.org/abs/2604.26365"""

    name = "L2P"
    about = "our zoo, fitted to the profile"
    profiled = True

    def propose(self, case: Case) -> list[Params]:
        errors, found = pair_errors(case.profile.kernel), list[Params]()
        for calls in case.calls:
            best = best_plan(errors, case.profile.sensitivity, calls)
            plans = {"even": even_steps(case.steps, calls), "best": best}
            for (planner, plan), history in itertools.product(plans.items(), (2, 3, 4)):
                found.append({"planner": planner, "plan": plan, "history": history})
        return found

    def build_rule(self, case: Case, params: Params) -> Rule:
        times = tuple(map(float, case.profile.times))
        forecast = Matched.fit(case.profile, params["plan"], params["history"])
        return Rule(policy=Plan.of(params["plan"], times), forecast=forecast)


# TeaCache, calibrated as its authors calibrate it: a polynomial from the input's change to the output's

TEA_THRESHOLDS = (0.03, 0.1, 0.3, 1.0, 3.0)
DEGREE = 4


class Watching(Polynomial):
    """Computes every step, and notes how far the signal and what the blocks add have changed."""

    _pairs: list[tuple[float, float]] = PrivateAttr(default_factory=list)

    def compute(self, state: Any, step: Step) -> bool:
        return True

    def observe(self, state: Any, step: Step, output: Tensor) -> None:
        if step.x is not None and state.anchor is not None and state.output is not None:
            pair = relative_change(step.x, state.anchor), relative_change(output, state.output)
            self._pairs.append((worst(pair[0], step.groups), worst(pair[1], step.groups)))
        super().observe(state, step, output.clone())


class TeaCache(RuleBaseline):
    """Liu et al., 2024, https://arxiv.org/abs/2411.19108"""

    name = "TeaCache"
    about = "our zoo, calibrated; decides for each prompt"
    inside = per_prompt = True
    threshold = "threshold"

    def propose(self, case: Case) -> list[Params]:
        changes = np.array(watch_changes(case))
        rising = fit_rising(changes[:, 0], changes[:, 1], DEGREE)
        published = np.polyfit(changes[:, 0], changes[:, 1], DEGREE)  # as its authors fit it
        fits: list[dict[str, Any]] = [
            {"coefficients": tuple(map(float, published))},
            {"coefficients": rising.coefficients, "clamp": (rising.low, rising.high)},
        ]
        return [{"threshold": threshold, **fit} for fit in fits for threshold in TEA_THRESHOLDS]

    def build_rule(self, case: Case, params: Params) -> Rule:
        return build_rules("teacache", **params, on=signal_of(case))[0]


def signal_of(case: Case) -> Any:
    """Returns what is looked at: the modulated input, where the first block's modulation is known."""
    return "modulated" if find_spec(case.denoisers[0]).modulated else "input"


def watch_changes(case: Case) -> list[tuple[float, float]]:
    """Returns the changes of signal and output from step to step, on full runs of the calibration prompts."""
    policy = Watching(threshold=0.0, coefficients=(1.0,), on=signal_of(case))
    (rule,) = build_rules("teacache", coefficients=(1.0,), threshold=0.0, on=signal_of(case))
    runner = build_runner(rule.model_copy(update={"policy": policy}))
    for prompt in case.prompts.batches(1):
        case.setup.run(runner, prompt)
    return policy._pairs


# A search like BudCache's: which steps to compute, by what plain reuse does to the final latents

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
