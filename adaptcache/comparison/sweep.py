"""Which settings of a method to try next: those between two that lie on both sides of a budget."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .baselines.base import Knobs

__all__ = ["Tried", "between"]

Tried = tuple[float, float, Knobs]  # calls, decibels and the setting


def between(found: Sequence[Tried], knob: str, budgets: Sequence[int]) -> list[Knobs]:
    """Returns settings in the middle, on a log scale, of the two nearest to each budget on both sides.

    Arguments:
        found: Calls, decibels and knobs of what was tried.
        knob: The one that is varied; more of it means fewer calls.
        budgets: In calls.
    """
    families: dict[str, list[tuple[float, Knobs]]] = {}
    for calls, _, knobs in found:
        rest = repr(sorted((key, value) for key, value in knobs.items() if key != knob))
        families.setdefault(rest, []).append((calls, knobs))
    new: dict[str, Knobs] = {}
    for entries in families.values():
        for budget in budgets:
            below = [knobs[knob] for calls, knobs in entries if calls <= budget + 1e-6]
            above = [knobs[knob] for calls, knobs in entries if calls > budget + 1e-6]
            over = [value for value in above if below and value < min(below)]
            if below and over:
                value = math.sqrt(min(below) * max(over))
                knobs = {**entries[0][1], knob: float(f"{value:.4g}")}
                new[repr(knobs)] = knobs
    return list(new.values())
