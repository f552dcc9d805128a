"""What to try next: first what calibration and the closed form would take, then neighbours of the best.

Every draw depends on the seed, the number of the trial and the trials before it, and on nothing else. So a
search that was killed goes on as if nothing had happened.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from ..calibrate import TRUST
from ..fitting.kernel import pair_errors
from ..fitting.path import best_plan
from ..profiling.profile import Profile
from .candidate import FEATURES, ZOO, Candidate

__all__ = ["Proposer", "Seen"]

FARTHEST = 3  # steps that one move shifts a call by
LEADERS = 3  # of these the neighbours are tried
TRIES = 200  # before a draw that was tried before is given up
LEAST, MOST = 1e-9, 1e-1  # of the ridge
MOVES = {  # kinds of a step from a parent, and how often
    "shift": 0.45, "shift two": 0.15, "swap": 0.1, "history": 0.08, "features": 0.04, "ridge": 0.08,
    "planner": 0.06, "zoo": 0.04,
}  # fmt: skip


@dataclass(frozen=True)
class Seen:
    """A finished trial.

    Arguments:
        slot: Its place in the search.
        candidate: What it tried.
        worth: What it was found to be worth, higher is better; None where it was pruned.
        psnr: Decibels by select prompt, as far as they were measured.
        error: Of the final latents, where weights were matched.
    """

    slot: int
    candidate: Candidate
    worth: float | None
    psnr: tuple[float, ...] = ()
    error: float | None = None


@dataclass(frozen=True)
class Proposer:
    """Proposes candidates.

    Arguments:
        profile: What was measured on the prompts to fit on.
        seed: Of the draws.
    """

    profile: Profile
    seed: int
    _warm: dict[int, list[Candidate]] = field(default_factory=dict, repr=False)

    @cached_property
    def errors(self) -> np.ndarray:
        """The closed-form errors, as `best_plan` takes them."""
        return pair_errors(self.profile.kernel)

    def planned(self, trust: float, calls: int) -> tuple[int, ...]:
        """Returns the plan of the closed form, with the measured influence trusted to a degree."""
        return tuple(best_plan(self.errors, self.profile.sensitivity**trust, calls))

    def warm(self, calls: int) -> list[Candidate]:
        """Returns what is tried first: all that `calibrate` would choose from."""
        if calls not in self._warm:
            plans: dict[tuple[int, ...], float] = {}
            for trust in TRUST:
                plans.setdefault(self.planned(trust, calls), trust)
            self._warm[calls] = [
                Candidate(plan=plan, origin=f"planner, trust {trust:g}") for plan, trust in plans.items()
            ]
        return self._warm[calls]

    def pending(self, calls: int, taken: Collection[str]) -> list[Candidate]:
        """Returns what of that was not proposed yet."""
        return [candidate for candidate in self.warm(calls) if candidate.key not in taken]

    def propose(
        self, slot: int, before: Sequence[Seen], taken: Collection[str], shares: Mapping[int, float]
    ) -> Candidate | None:
        """Returns what a trial tries, or None where everything was tried.

        Arguments:
            slot: The number of the trial.
            before: The finished trials with lower numbers, in order.
            taken: Keys of candidates that were proposed already.
            shares: How often each number of calls is to be tried.
        """
        rng = np.random.default_rng([self.seed, slot])
        weights = np.array(list(shares.values()))
        for wanted in rng.choice(list(shares), len(shares), replace=False, p=weights / weights.sum()):
            if pending := self.pending(int(wanted), taken):
                return pending[0]
            known = [seen for seen in before if seen.candidate.calls == wanted and seen.worth is not None]
            leaders = sorted(known, key=lambda seen: (-(seen.worth or 0.0), seen.slot))[:LEADERS]
            for attempt in range(TRIES):
                if leaders and attempt < TRIES // 2:
                    parent = leaders[min(int(rng.geometric(0.6)) - 1, len(leaders) - 1)]
                    made = self.neighbour(parent.candidate, rng)
                else:
                    made = self.random(int(wanted), rng)
                if made.key not in taken:
                    return made
        return None

    def neighbour(self, parent: Candidate, rng: np.random.Generator) -> Candidate:
        """Returns a candidate one move away."""
        kind = str(rng.choice(list(MOVES), p=list(MOVES.values())))
        if kind == "history":
            history = int(np.clip(parent.history + rng.choice([-1, 1, 2]), 1, 6))
            return parent.with_(forecast="matched", history=history, origin="history")
        if kind == "features":
            return parent.with_(forecast="matched", features=FEATURES[rng.integers(len(FEATURES))], origin=kind)
        if kind == "ridge":
            return parent.with_(forecast="matched", ridge=near(parent.ridge, rng), origin=kind)
        if kind == "planner":
            trust = float(rng.uniform(0, 1.5))
            return parent.with_(plan=self.planned(trust, parent.calls), origin=f"planner, trust {trust:.2f}")
        if kind == "zoo":
            name = str(rng.choice(list(ZOO)))
            return parent.with_(forecast=name, order=int(rng.choice(list(ZOO[name]))), origin=name)
        plan = parent.plan
        for _ in range(2 if kind == "shift two" else 1):
            plan = moved(plan, self.profile.steps, rng, anywhere=kind == "swap")
        return parent.with_(plan=plan, origin=kind)

    def random(self, calls: int, rng: np.random.Generator) -> Candidate:
        """Returns a candidate from anywhere."""
        steps = 1 + rng.choice(self.profile.steps - 1, size=calls - 1, replace=False)
        ridge = float(f"{10 ** rng.uniform(np.log10(LEAST), np.log10(MOST)):.3g}")
        return Candidate(
            plan=(0, *sorted(map(int, steps))), history=int(rng.integers(1, 7)), ridge=ridge,
            features=FEATURES[rng.integers(len(FEATURES))], origin="random",
        )  # fmt: skip


def near(ridge: float, rng: np.random.Generator) -> float:
    """Returns a ridge within a factor of 30, with three digits, so that files keep it whole."""
    return float(f"{np.clip(ridge * 10 ** rng.uniform(-1.5, 1.5), LEAST, MOST):.3g}")


def moved(
    plan: tuple[int, ...], steps: int, rng: np.random.Generator, anywhere: bool = False
) -> tuple[int, ...]:
    """Returns a plan with one call, but the first, at another step: near by, or anywhere.

    Arguments:
        plan: The computed steps.
        steps: Of the run.
        rng: What to draw from.
        anywhere: Whether the call may go to any step.
    """
    free = sorted(set(range(1, steps)) - set(plan))
    if len(plan) < 2 or not free:
        return plan
    call = int(rng.choice(plan[1:]))
    reach = [step for step in free if anywhere or abs(step - call) <= FARTHEST]
    return tuple(sorted({*plan, int(rng.choice(reach))} - {call})) if reach else plan
