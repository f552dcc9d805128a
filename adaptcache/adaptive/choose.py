"""Which gear each prompt would take: what the policy does on the device, on arrays of many prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..fitting.kernel import Array

__all__ = ["MARGINS", "chosen", "least_margin"]

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
    gears = np.zeros(len(next(iter(promised.values()))), dtype=int)
    for computed in range(2, max(map(len, plans)) + 1):
        before = gears.copy()
        for gear in np.unique(before):
            opened = [g for g, plan in enumerate(plans) if plan[:computed] == plans[gear][:computed]]
            if len(opened) > 1 and computed <= len(plans[gear]):
                here = before == gear
                good = np.stack([promised[g, computed - 2][here] >= wanted for g in opened])
                first = np.where(good.any(axis=0), good.argmax(axis=0), len(opened) - 1)
                gears[here] = np.array(opened)[first]
    return gears


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
