"""Which gear each prompt would take: what the policy does on the device, on arrays of many prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..fitting.kernel import Array

__all__ = ["chosen", "least_margin"]

MARGINS = tuple(np.arange(12.0, -6.01, -0.25))  # decibels, from the slowest to the fastest


def chosen(
    plans: Sequence[Sequence[int]], promised: Mapping[tuple[int, int], Array], wanted: float
) -> np.ndarray:
    """Returns the gear each prompt ends in, with shape (P,).

    Arguments:
        plans: The computed steps of the gears, budgets rising.
        promised: By gear and number of the look, what was guessed for each prompt, with shape (P,).
        wanted: Decibels that a guess has to reach.
    """
    count = len(next(iter(promised.values())))
    return np.array([_chosen(plans, promised, wanted, prompt) for prompt in range(count)])


def _chosen(
    plans: Sequence[Sequence[int]], promised: Mapping[tuple[int, int], Array], wanted: float, prompt: int
) -> int:
    gear, computed = 0, 2
    while computed <= len(plans[gear]):
        opened = [g for g, plan in enumerate(plans) if plan[:computed] == plans[gear][:computed]]
        if len(opened) > 1:
            good = [g for g in opened if promised[g, computed - 2][prompt] >= wanted]
            gear = good[0] if good else opened[-1]
        computed += 1
    return gear


def least_margin(
    plans: Sequence[Sequence[int]],
    promised: Mapping[tuple[int, int], Array],
    ends: Array,
    target: float,
    at_most: float,
) -> float:
    """Returns the smallest margin with which no more than a share of prompts stays below the target.

    Arguments:
        plans: As for `chosen`.
        promised: As for `chosen`; guesses must come from other prompts.
        ends: Decibels that each gear's runs ended with, with shape (G, P).
        target: Decibels that a prompt should reach.
        at_most: The share of prompts that may stay below.
    """
    best = MARGINS[0]
    for margin in MARGINS:
        gears = chosen(plans, promised, target + margin)
        if float((ends[gears, np.arange(len(gears))] < target).mean()) > at_most:
            break
        best = margin
    return float(best)
