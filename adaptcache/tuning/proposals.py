"""What to try next: first what calibration and the closed form would take, then neighbours of the best.

Every draw depends on the seed, the number of the trial and the trials before it, and on nothing else. So a
search that was killed goes on as if nothing had happened.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from ..calibration.fit import plans_for
from ..fitting.plan import best_plan
from ..profile import Profile
from .candidate import FEATURES, ZOO, Candidate
from .moves import anywhere, deepest, moved, near
from .race import Seen

__all__ = ["Proposer"]

LEADERS = 3  # of these the neighbours are tried
DRAWS = 4  # moves of a plan, of which the closed form's favourite is tried
TRIES = 200  # before a draw that was tried before is given up
MOVES = {  # kinds of a step from a parent, and how often
    "shift": 0.5, "shift two": 0.15, "swap": 0.1, "history": 0.05, "features": 0.04, "ridge": 0.08,
    "planner": 0.06, "zoo": 0.02,
}  # fmt: skip


@dataclass(frozen=True)
class Proposer:
    """Proposes candidates.

    Arguments:
        profile: What was measured on all calibration prompts: these are the plans `calibrate` has.
        seed: Of the draws.
    """

    profile: Profile
    seed: int
    _warm: dict[int, list[Candidate]] = field(default_factory=dict, repr=False)

    @cached_property
    def errors(self) -> np.ndarray:
        """The closed-form errors, as `best_plan` takes them."""
        return self.profile.errors

    def planned(self, trust: float, calls: int) -> tuple[int, ...]:
        """Returns the plan of the closed form, with the measured influence trusted to a degree."""
        return tuple(best_plan(self.errors, self.profile.sensitivity**trust, calls))

    def predicted(self, plan: tuple[int, ...]) -> float:
        """Returns the error of a plan in the closed form, with the measured influence trusted by half."""
        weights, total = np.sqrt(self.profile.sensitivity), 0.0
        for step in set(range(self.profile.steps)) - set(plan):
            last, *more = [call for call in reversed(plan) if call < step][:2]
            total += float(self.errors[more[0] if more else last, last, step] * weights[step])
        return total

    def warm(self, calls: int) -> list[Candidate]:
        """Returns what is tried first: all that `calibrate` would choose from."""
        if calls not in self._warm:
            plans = plans_for(self.profile, calls)
            self._warm[calls] = [Candidate(plan=plan, origin=origin) for plan, origin in plans.items()]
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
            if wanted == self.profile.steps:
                continue  # nothing is skipped: all candidates are one
            known = [seen for seen in before if seen.candidate.calls == wanted and seen.worth is not None]
            leaders = sorted(known, key=lambda seen: (-(seen.worth or 0.0), seen.slot))[:LEADERS]
            if leaders and (made := deepest(leaders[0].candidate)).key not in taken:
                return made
            for attempt in range(TRIES):
                if leaders and attempt < TRIES // 2:
                    parent = leaders[min(int(rng.geometric(0.6)) - 1, len(leaders) - 1)]
                    made = self.neighbour(parent.candidate, rng)
                else:
                    made = anywhere(int(wanted), self.profile.steps, rng)
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
            return parent.with_(
                forecast="matched", features=FEATURES[rng.integers(len(FEATURES))], origin=kind
            )
        if kind == "ridge":
            return parent.with_(forecast="matched", ridge=near(parent.ridge, rng), origin=kind)
        if kind == "planner":
            trust = float(rng.uniform(0, 1.5))
            return parent.with_(plan=self.planned(trust, parent.calls), origin=f"planner, trust {trust:.2f}")
        if kind == "zoo":
            name = str(rng.choice(list(ZOO)))
            return parent.with_(forecast=name, order=int(rng.choice(list(ZOO[name]))), origin=name)
        plans = []
        for _ in range(DRAWS):
            plan = parent.plan
            for _ in range(2 if kind == "shift two" else 1):
                plan = moved(plan, self.profile.steps, rng, far=kind == "swap")
            plans.append(plan)
        return parent.with_(plan=min(plans, key=self.predicted), origin=kind)
