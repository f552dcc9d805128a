"""SmoothCache: one threshold for all types of layers, by what it leaves to compute."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..forecasts.extrapolate import Extrapolate
from ..policies.local_error import LocalError
from ..schedule import Rule

__all__ = ["within_budget"]

NEVER = 1e9  # no error is as large


def within_budget(errors: Mapping[str, np.ndarray], budget: float, first: bool = False) -> tuple[Rule, ...]:
    """Returns a rule for each type of layer, with the threshold that comes nearest to a budget.

    Arguments:
        errors: By site, the error of reuse with shape (N, L): of step i at step i + 1 + k. Not finite where
            there is no such step.
        budget: The fraction of the layers that is computed, the mean over types.
        first: Whether the first error above the threshold ends a skip; SmoothCache takes the last one below.
    """
    if not 0 < budget <= 1:
        raise ValueError(f"budget must be in (0, 1], got {budget:g}: the fraction of the layers computed")
    rows = {site: np.where(np.isfinite(table), table, NEVER) for site, table in errors.items()}
    values = np.unique(np.concatenate([table[table < NEVER] for table in rows.values()]))
    thresholds = [0.0, *((values[:-1] + values[1:]) / 2), values[-1] * 1.001]
    steps = len(next(iter(rows.values())))
    grid = tuple(1 - i / steps for i in range(steps))

    def policies(threshold: float) -> dict[str, LocalError]:
        return {
            site: LocalError(errors=tuple(map(tuple, table.tolist())), threshold=threshold, first=first)
            for site, table in rows.items()
        }

    def off(threshold: float) -> float:
        made = [len(policy.init(grid)) for policy in policies(threshold).values()]
        return abs(float(np.mean(made)) / steps - budget)

    low, high = 0, len(thresholds) - 1  # higher thresholds compute less, but for a few steps
    near = [thresholds[round(i)] for i in np.linspace(low, high, min(len(thresholds), 65))]
    best = min(near, key=off)
    chosen = policies(float(best)).items()
    return tuple(Rule(site=site, policy=policy, forecast=Extrapolate(order=0)) for site, policy in chosen)
