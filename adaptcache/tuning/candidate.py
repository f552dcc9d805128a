"""The search space: which steps are computed and what a forecast may use; and what is tried next."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Self

import numpy as np

from ..calibration.fit import TRUST, plans_for
from ..calibration.match import Fit
from ..fitting.plan import best_plan
from ..forecasts.matched import Feature
from ..profile import Profile
from .target import Target

FEATURES: dict[str, tuple[Feature, ...]] = {
    "past_x+x+x0": ("past_x", "x", "x0"), "past_x+x": ("past_x", "x"), "x": ("x",), "x0": ("x0",), "none": (),
}  # fmt: skip
MOVES = {  # from a parent, and how often
    "shift": 0.52, "shift two": 0.15, "swap": 0.1, "history": 0.05, "features": 0.04, "ridge": 0.08, "planner": 0.06,
}  # fmt: skip
ORIGINS = [*(f"planner, trust {trust:g}" for trust in TRUST), "even steps", *MOVES]
FARTHEST = 3  # steps that a shift moves a call by
DRAWS = 4  # moves of a plan, of which the one with the least predicted error is tried
LONGEST = 6  # outputs that a forecast can use
LEAST, MOST = 1e-9, 1e-1  # of the ridge
LEADERS = 3  # of these the neighbours are tried
TRIES = 100  # draws before all neighbours count as tried
ABOVE = (1, 2, 3, 5)  # calls more than the fewest that reach a quality


@dataclass(frozen=True)
class Candidate:
    """A plan (the computed steps, rising from 0), what its forecast may use, and how it was found.

    `features` is a key of `FEATURES`, `origin` one of `ORIGINS`.
    """

    plan: tuple[int, ...]
    history: int = 4
    features: str = "past_x+x+x0"
    ridge: float = 1e-5
    origin: str = field(default="even steps", compare=False)

    @classmethod
    def suggest(cls, trial: Any, steps: int) -> Self:
        """Returns the candidate of a trial of optuna, or of a finished one."""
        calls = trial.suggest_int("calls", 1, steps)
        plan = {0, *(trial.suggest_int(f"call {k}", 1, steps - 1) for k in range(1, calls))}
        return cls(
            plan=tuple(sorted(plan)),
            history=trial.suggest_int("history", 1, LONGEST),
            features=trial.suggest_categorical("features", list(FEATURES)),
            ridge=trial.suggest_float("ridge", LEAST, MOST, log=True),
            origin=trial.suggest_categorical("origin", ORIGINS),
        )

    @property
    def params(self) -> dict[str, Any]:
        """The parameters that `suggest` asks for."""
        calls = {f"call {k}": step for k, step in enumerate(self.plan)}
        return {**vars(self), **calls, "calls": len(self.plan)}

    @property
    def fit(self) -> Fit:
        """What the forecast may use."""
        return Fit(self.history, FEATURES[self.features], self.ridge)


def leaders(trials: Sequence[Any], calls: int) -> list[Any]:
    """Returns the completed trials with so many calls, the best first."""
    known = [one for one in trials if one.state.name == "COMPLETE" and one.params["calls"] == calls]
    return sorted(known, key=lambda trial: (-trial.value, trial.number))


@dataclass(frozen=True)
class Proposer:
    """Proposes what `calibrate` chooses from, then moves from the best trials.

    Arguments:
        profile: What was measured on all calibration prompts, so that the plans are those of `calibrate`.
        target: What is asked for.
        choices: The numbers of calls that may be tried, rising.
        seed: Of the draws; with the number of a trial it determines them.
    """

    profile: Profile
    target: Target
    choices: Sequence[int]
    seed: int
    _starts: dict[int, list[Candidate]] = field(default_factory=dict, repr=False)

    def starts(self, calls: int) -> list[Candidate]:
        """Returns what is tried first: all plans that `calibrate` chooses from."""
        if calls not in self._starts:
            plans = plans_for(self.profile, calls).items()
            self._starts[calls] = [Candidate(plan, origin=origin) for plan, origin in plans]
        return self._starts[calls]

    def propose(self, number: int, trials: Sequence[Any]) -> Candidate | None:
        """Returns what trial `number` tries after others; None where everything was tried."""
        rng, steps = np.random.default_rng([abs(self.seed), number]), self.profile.steps
        taken = {Candidate.suggest(trial, steps) for trial in trials}
        shares = self.shares(trials, taken)
        odds = np.array(list(shares.values()))
        for calls in map(int, rng.choice(list(shares), len(shares), replace=False, p=odds / odds.sum())):
            if pending := [start for start in self.starts(calls) if start not in taken]:
                return pending[number % len(pending)]  # workers that begin at once take different ones
            parents = [Candidate.suggest(trial, steps) for trial in leaders(trials, calls)[:LEADERS]]
            parents = parents or self.starts(calls)[:1]
            deepest = replace(parents[0], history=LONGEST, origin="history")  # nearly always better
            if deepest not in taken and calls < steps:
                return deepest
            for _ in range(TRIES if calls < steps else 0):  # if nothing is skipped, all are one
                parent = parents[min(int(rng.geometric(0.6)) - 1, len(parents) - 1)]
                if (made := self.neighbour(parent, rng)) not in taken:
                    return made
        return None

    def shares(self, trials: Sequence[Any], taken: Collection[Candidate]) -> dict[int, float]:
        """Returns how often each number of calls is to be tried next.

        For a quality these numbers are found by bisection; then some a little above get a trial each, as a
        certificate asks for more than the prompts that select; then the fewest calls that reach it, and one less.
        """
        choices, wanted = self.choices, self.target.min_psnr
        if wanted is None:  # what `calibrate` chooses from comes first
            pending = [calls for calls in choices if not taken.issuperset(self.starts(calls))]
            return {pending[0]: 1.0} if pending else dict.fromkeys(choices, 1.0)
        best = {at: found[0].value for at, calls in enumerate(choices) if (found := leaders(trials, calls))}
        high = min((at for at, value in best.items() if value >= wanted), default=len(choices))
        low = max((at for at, value in best.items() if value < wanted and at < high), default=-1)
        if high - low > 1:
            return {choices[(low + high) // 2]: 1.0}
        tried = {trial.params["calls"] for trial in trials}
        for calls in (choices[high + more] for more in ABOVE if high + more < len(choices)):
            if calls not in tried:
                return {calls: 1.0}
        return {choices[at]: share for at, share in ((low, 0.6), (high, 0.4)) if 0 <= at < len(choices)}

    @cached_property
    def errors(self) -> np.ndarray:
        """The closed-form errors, as `best_plan` takes them."""
        return self.profile.errors

    def predicted(self, plan: tuple[int, ...]) -> float:
        """Returns the error of a plan in the closed form, with the measured sensitivity trusted by half."""
        weights, total = np.sqrt(self.profile.sensitivity), 0.0
        for step in set(range(self.profile.steps)) - set(plan):
            last, *more = [call for call in reversed(plan) if call < step][:2]
            total += float(self.errors[more[0] if more else last, last, step] * weights[step])
        return total

    def neighbour(self, parent: Candidate, rng: np.random.Generator) -> Candidate:
        """Returns a candidate one move away."""
        kind = str(rng.choice(list(MOVES), p=list(MOVES.values())))
        made = replace(parent, origin=kind)
        if kind == "history":
            return replace(made, history=int(np.clip(parent.history + rng.choice([-1, 1, 2]), 1, LONGEST)))
        if kind == "features":
            return replace(made, features=str(rng.choice(list(FEATURES))))
        if kind == "ridge":
            ridge = np.clip(parent.ridge * 10 ** rng.uniform(-1.5, 1.5), LEAST, MOST)
            return replace(made, ridge=float(f"{ridge:.3g}"))  # files keep three digits whole
        if kind == "planner":
            weights = self.profile.sensitivity ** rng.uniform(0, 1.5)
            return replace(made, plan=tuple(best_plan(self.errors, weights, len(parent.plan))))
        draws = [parent.plan] * DRAWS
        for _ in range(2 if kind == "shift two" else 1):
            draws = [move_call(plan, self.profile.steps, rng, far=kind == "swap") for plan in draws]
        return replace(made, plan=min(draws, key=self.predicted))


def move_call(
    plan: tuple[int, ...], steps: int, rng: np.random.Generator, far: bool = False
) -> tuple[int, ...]:
    """Returns a plan with one call, but the first, at another step: near by, or anywhere."""
    free = sorted(set(range(1, steps)) - set(plan))
    if len(plan) < 2 or not free:
        return plan
    call = int(rng.choice(plan[1:]))
    reach = [step for step in free if far or abs(step - call) <= FARTHEST]
    return tuple(sorted({*plan, int(rng.choice(reach))} - {call})) if reach else plan
