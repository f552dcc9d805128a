"""Several plans with a shared beginning: which one a run follows is decided by what is seen on the way.

After a computed step all gears that would have done the same so far are still open. Their predictors say,
from the signals seen so far, how the run would end in each; the cheapest that reaches the target is taken, or
the slowest open one where none does. So a run may shift at any computed step, and it ends bit for bit as one
that was in its last gear from the start: weights depend on the steps computed so far.

References:
    | DiffCR (You et al., 2024), https://arxiv.org/abs/2412.16822 (ratios by sample, learned by gradients)
    | SADA (Jiang et al., 2025), https://arxiv.org/abs/2507.17135 (a criterion at each step)
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field, FiniteFloat, NonNegativeInt, model_validator
from torch import Tensor

from ..distributed import highest
from ..fitting.kernel import pair_errors
from ..fitting.plan import shared_plans
from ..fitting.signals import measure_signals, predict_psnr, signal_rows
from ..profile import Profile
from ..step import Step
from .base import Account
from .plan import Plan, SignalSpecs
from .replay import find_nearest
from .signals import compute_signals, fit_signal_specs

PARTS = (0.6, 0.8, 1.0, 1.3, 1.7)  # of the budget, that gears of a profile have
TARGETS = 16  # that are replayed for a budget
NEVER = 1e6  # decibels that nothing reaches
ALARM = 1000  # added to the number of a gear that the guard chose: one number carries both


@dataclass
class GearState:
    """The way a run has taken; tensors stay on the device."""

    plans: list[list[int]]  # the steps each gear computes
    gear: int  # the one followed; their number where everything is computed from now on
    outputs: list[Tensor] = field(default_factory=list)  # those computed so far, newest first
    signals: list[Tensor] = field(default_factory=list)  # of each computed step, with shape (B, F)
    choice: Tensor | None = None  # the number of a gear that was chosen on the device and not read yet
    # Step, open gears, and what they predict for the worst sample, with shape (G,).
    expected: list[tuple[int, list[int], Tensor]] = field(default_factory=list)
    alarms: list[int] = field(default_factory=list)  # the steps after which the guard acted


def explain_choice(
    wanted: float, expected: list[tuple[int, list[int], Tensor]], alarms: list[int], everything: bool
) -> str:
    """Returns why a run was in its gear, in words; reads a few numbers from the device."""
    words = []
    if expected:
        index, opened, worst = expected[-1]
        predicted = [float(value) for value in worst]
        good = [k for k, value in enumerate(predicted) if value >= wanted]
        taken, verb = (good[0], "promised") if good else (len(opened) - 1, "promised only")
        words.append(f"after step {index} gear {opened[taken]} {verb} {predicted[taken]:.1f} dB of {wanted:.1f}")
    if alarms:
        then = "all is computed from there on" if everything else "a slower gear was taken"
        words.append(
            f"the guard saw an unknown change at step {', '.join(map(str, alarms))} "
            f"(other weights, another kind of prompt?): {then}"
        )
    return "; ".join(words)


class Gears(Plan):
    """Follows the cheapest plan that is predicted to reach the target.

    One number is read from the device after a computed step, and none where nothing is left to choose. The
    worst sample of a batch decides for all. Where the guard is on, an innovation outside of its band (other
    weights, another domain) shifts the run to the slowest gear that is open; where it is in that already,
    everything is computed from there on.

    Arguments:
        gears: Plans with rising budgets.
        signal_specs: What to look at, by gear and computed step after the first.
        target: Decibels that the run should end with.
        margin: Decibels that a prediction has to lie above it.
        start: The gear a run begins in, and stays in where there are no predictors.
        guard: Whether innovations are compared with their bands.
    """

    static: ClassVar[bool] = False

    type: Literal["gears"] = "gears"  # type: ignore[assignment]
    signal_specs: SignalSpecs = Field(alias="watch")
    target: FiniteFloat
    margin: FiniteFloat = 0.0
    start: NonNegativeInt = 0
    guard: bool = False

    @model_validator(mode="after")
    def _starts_in_a_gear(self) -> Self:
        if self.start >= len(self.gears):
            raise ValueError(f"there is no gear {self.start} to start in: there are {len(self.gears)}")
        budgets = [gear.budget for gear in self.gears]
        if budgets != sorted(budgets):
            raise ValueError("the budgets of gears have to rise")
        return self

    @classmethod
    def staying(cls, plan: Plan, gear: int, guard: bool) -> Self:
        """Returns the policy that stays in one gear, unless the guard acts."""
        assert plan.signal_specs is not None
        silent = tuple(
            tuple(spec.model_copy(update={"predictor": None}) for spec in specs) for specs in plan.signal_specs
        )
        return cls(gears=plan.gears, signal_specs=silent, target=0.0, start=gear, guard=guard)

    def init(self, times: tuple[float, ...]) -> GearState:
        return GearState([self.steps(times, gear) for gear in range(len(self.gears))], self.start)

    def compute(self, state: GearState, step: Step) -> bool:  # type: ignore[override]
        if state.choice is not None:
            # Of ranks that run one denoiser together the slowest gear is taken, and an alarm holds for all.
            alarm, state.gear = divmod(int(highest(state.choice, step.groups)), ALARM)
            state.choice = None
            if alarm:
                state.alarms.append(step.past[0])
        return state.gear == len(state.plans) or step.index in state.plans[state.gear]

    def gear(self, state: GearState, chosen: int) -> int:
        return min(state.gear, len(state.plans) - 1)

    def account(self, state: GearState, chosen: int) -> Account:
        everything = state.gear == len(state.plans)
        wanted, seen = self.target + self.margin, (list(state.expected), list(state.alarms))
        return Account(self.gear(state, chosen), partial(explain_choice, wanted, *seen, everything))

    def observe(self, state: GearState, step: Step, output: Tensor) -> None:
        computed = sorted({*step.past, step.index})
        number = len(computed) - 2  # of the computed steps after the first
        if state.gear == len(state.plans):
            return
        state.outputs.insert(0, output.clone())
        specs = self.signal_specs[state.gear]
        if not 0 <= number < len(specs):
            return
        del state.outputs[specs[number].depth :]
        state.signals.append(compute_signals(specs[number].rows, state.outputs))
        opened = [g for g, plan in enumerate(state.plans) if [i for i in plan if i <= step.index] == computed]
        self._choose(state, step.index, number, opened)

    def _choose(self, state: GearState, index: int, number: int, opened: list[int]) -> None:
        """Notes, on the device, which of the open gears to take."""
        innovation = state.signals[-1][:, 0]
        predictors = [self.signal_specs[g][number].predictor for g in opened]
        choice = torch.full((), state.gear, device=innovation.device)  # does not sync, as a tensor of a list would
        if len(opened) > 1 and all(predictors) and not state.alarms:
            signals = torch.cat(state.signals, 1)
            worst = torch.stack([one.predict(signals).min() for one in predictors if one])
            state.expected.append((index, opened, worst))
            order = torch.arange(len(opened), device=worst.device)
            good = torch.where(worst >= self.target + self.margin, order, len(opened) - 1)
            # Not by indexing: a tensor of no dimensions is read from the device for that.
            choice = torch.tensor(opened, device=worst.device).take(good.min())
        elif not self.guard:
            return
        if self.guard:
            low, high = self.signal_specs[state.gear][number].band
            inside = ((innovation >= low) & (innovation <= high)).all()
            slower = opened[-1] if opened[-1] > state.gear else len(state.plans)
            choice = torch.where(inside, choice, slower + ALARM)
        state.choice = choice

    @classmethod
    def fit(cls, profile: Profile, *, budget: float = 0.5, **params: Any) -> Self:
        """Learns from the profile alone: plans, predictors and the target that spends the budget.

        Errors are those of the planner's model, so the decibels are those of no image.
        `adaptcache.calibrate(gears=...)` runs the plans instead. Needs scikit-learn.
        """
        n = profile.steps
        calls = sorted({min(n, max(2, round(part * budget * n))) for part in PARTS} | {n})
        plans = shared_plans(pair_errors(profile.kernel), profile.sensitivity, calls, 2)
        gram = profile.gram[:, :n, :n]
        rows = [signal_rows(profile.kernel, plan) for plan in plans]
        seen = [measure_signals(gram, plan, own) for plan, own in zip(plans, rows, strict=True)]
        ends = np.stack([predict_psnr(gram, profile.sensitivity, plan) for plan in plans])
        specs, predicted = fit_signal_specs(plans, rows, seen, ends)
        times = tuple(map(float, profile.times))
        gears = tuple(gear for plan in plans for gear in Plan.of(plan, times).gears)
        values = np.concatenate([*predicted.values(), [NEVER]])
        targets = [NEVER, *map(float, np.quantile(values, np.linspace(0, 1, TARGETS), method="nearest"))]
        made = [cls(gears=gears, signal_specs=specs, target=target, **params) for target in targets]
        return made[0] if budget == 1 else find_nearest(made, profile, budget)
