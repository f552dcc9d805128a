"""Which steps to compute: exact dynamic programming over the computed steps."""

from __future__ import annotations

import numpy as np

from .kernel import Array

__all__ = ["best_plan", "minmax_plan", "reuse_costs"]


def best_plan(errors: Array, sensitivity: Array, calls: int) -> list[int]:
    """Returns the computed steps with the smallest sum of weighted forecast errors.

    A skipped step costs the error of forecasting it from the last two computed steps, times its
    sensitivity; that errors add up and do not interact is the model, and in it the plan is exact.

    Arguments:
        errors: `errors[a, b, i]`, the squared error of step i from the computed steps a < b, or from b
            alone where a == b, with shape (N, N, N).
        sensitivity: What an error at each step does to the end result, with shape (N,).
        calls: How many steps to compute, from 1 to N.

    Returns:
        `calls` rising step numbers; the first is 0.
    """
    n = len(sensitivity)
    if not 1 <= calls <= n:
        raise ValueError(f"calls must be in [1, {n}] for {n} steps, got {calls}")
    # cost[a, b, j]: of skipping everything between b and j when a, b are the last two computed.
    after = np.arange(n)[None, :] > np.arange(n)[:, None]  # (b, i)
    summed = np.cumsum(np.where(after, errors * sensitivity, 0.0), axis=2)
    cost = np.full((n, n, n + 1), np.inf)
    for b in range(n):
        cost[:, b, b + 1] = 0.0
        cost[:, b, b + 2 :] = summed[:, b, b + 1 :]
    best = np.full((n, n), np.inf)  # best[a, b]: cheapest way to have computed a, b as the last two
    best[0, 0] = 0.0
    came_from = []
    for _ in range(calls - 1):
        through = best[:, :, None] + cost[:, :, :n]  # (a, b, j)
        came_from.append(through.argmin(axis=0))
        best = through.min(axis=0)
    a, b = divmod(int(np.argmin(best + cost[:, :, n])), n)
    plan = [b]
    for previous in reversed(came_from):
        a, b = int(previous[a, b]), a
        plan.append(b)
    return plan[::-1]


def reuse_costs(errors: Array, sensitivity: Array) -> Array:
    """Returns the cost of computing step i and then step j, and reusing i in between.

    Arguments:
        errors: As for `best_plan`, with shape (N, N, N).
        sensitivity: What an error at each step does to the end result, with shape (N,).

    Returns:
        Costs with shape (N, N + 1); the last column is the end of the run. Only i < j means something.
    """
    n = len(sensitivity)
    alone = errors[np.arange(n), np.arange(n)] * sensitivity  # (i, k): of k from i alone
    summed = np.concatenate([np.zeros((n, 1)), np.cumsum(alone, axis=1)], axis=1)
    return np.asarray(summed - np.diagonal(summed[:, 1:])[:, None])


def minmax_plan(costs: Array, calls: int) -> list[int]:
    """Returns the computed steps whose worst skip is the smallest; among these, whose second worst is, ...

    Skips are compared as LeMiCa does: their costs, sorted from the worst, as words in a dictionary.
    Appending a cost to two such words of one length keeps their order, so dynamic programming is exact.

    Arguments:
        costs: The cost of going from computed step i to j, with shape (N, N + 1); column N is the end.
        calls: How many steps to compute, from 1 to N.

    Returns:
        `calls` rising step numbers; the first is 0.
    """
    n = len(costs)
    if not 1 <= calls <= n:
        raise ValueError(f"calls must be in [1, {n}] for {n} steps, got {calls}")
    # best[j]: the smallest word on the way to computed step j, and the steps of that way
    best: dict[int, tuple[tuple[float, ...], tuple[int, ...]]] = {0: ((), (0,))}
    for _ in range(calls - 1):
        ways: dict[int, tuple[tuple[float, ...], tuple[int, ...]]] = {}
        for i, (word, way) in best.items():
            for j in range(i + 1, n):
                longer = (tuple(sorted((*word, float(costs[i, j])), reverse=True)), (*way, j))
                ways[j] = min(ways.get(j, longer), longer)
        best = ways
    ends = [(sorted((*word, float(costs[i, n])), reverse=True), way) for i, (word, way) in best.items()]
    return list(min(ends)[1])
