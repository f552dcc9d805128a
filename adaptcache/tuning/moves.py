"""Steps through the search space: from a plan to one near by, or to anywhere."""

from __future__ import annotations

import numpy as np

from .candidate import FEATURES, Candidate

__all__ = ["anywhere", "deepest", "moved", "near"]

FARTHEST = 3  # steps that one move shifts a call by
LEAST, MOST = 1e-9, 1e-1  # of the ridge


def anywhere(calls: int, steps: int, rng: np.random.Generator) -> Candidate:
    """Returns a candidate that has nothing to do with others."""
    chosen = 1 + rng.choice(steps - 1, size=calls - 1, replace=False)
    ridge = float(f"{10 ** rng.uniform(np.log10(LEAST), np.log10(MOST)):.3g}")
    return Candidate(
        plan=(0, *sorted(map(int, chosen))), history=int(rng.integers(1, 7)), ridge=ridge,
        features=FEATURES[rng.integers(len(FEATURES))], origin="random",
    )  # fmt: skip


def deepest(candidate: Candidate) -> Candidate:
    """Returns a candidate that uses all the outputs it can: nearly always better, and not always."""
    return candidate.with_(forecast="matched", history=6, origin="history")


def near(ridge: float, rng: np.random.Generator) -> float:
    """Returns a ridge within a factor of 30, with three digits, so that files keep it whole."""
    return float(f"{np.clip(ridge * 10 ** rng.uniform(-1.5, 1.5), LEAST, MOST):.3g}")


def moved(plan: tuple[int, ...], steps: int, rng: np.random.Generator, far: bool = False) -> tuple[int, ...]:
    """Returns a plan with one call, but the first, at another step: near by, or anywhere.

    Arguments:
        plan: The computed steps.
        steps: Of the run.
        rng: What to draw from.
        far: Whether the call may go to any step.
    """
    free = sorted(set(range(1, steps)) - set(plan))
    if len(plan) < 2 or not free:
        return plan
    call = int(rng.choice(plan[1:]))
    reach = [step for step in free if far or abs(step - call) <= FARTHEST]
    return tuple(sorted({*plan, int(rng.choice(reach))} - {call})) if reach else plan
