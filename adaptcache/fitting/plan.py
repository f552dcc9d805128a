"""Which steps to compute: exact dynamic programming over the computed steps."""

import itertools
from collections.abc import Sequence

import numpy as np

from .kernel import Array

FARTHEST = 3  # steps that `move_call` moves a call by
BEGINNINGS = 12  # steps that a shared beginning is made of, denser at the start


def best_plan(errors: Array, sensitivity: Array, calls: int, prefix: Sequence[int] = (0,)) -> list[int]:
    """Returns the computed steps with the smallest sum of weighted forecast errors.

    A skipped step costs the error of forecasting it from the last two computed steps, times its
    sensitivity; that errors add up and do not interact is the model, and in it the plan is exact.

    Arguments:
        errors: `errors[a, b, i]`, the squared error of step i from the computed steps a < b, or from b
            alone where a == b, with shape (N, N, N).
        sensitivity: What an error at each step does to the end result, with shape (N,).
        prefix: The first of them, where these are given: rising, from 0.

    Returns:
        `calls` rising step numbers; the first is 0.
    """
    n = len(sensitivity)
    if not 1 <= calls <= n:
        raise ValueError(f"calls must be in [1, {n}] for {n} steps, got {calls}")
    if not len(prefix) <= calls <= n - prefix[-1] - 1 + len(prefix):
        raise ValueError(f"no plan of {calls} calls in {n} steps begins with {list(prefix)}")
    # cost[a, b, j]: of skipping everything between b and j when a, b are the last two computed.
    after = np.arange(n)[None, :] > np.arange(n)[:, None]  # (b, i)
    summed = np.cumsum(np.where(after, errors * sensitivity, 0.0), axis=2)
    cost = np.full((n, n, n + 1), np.inf)
    for b in range(n):
        cost[:, b, b + 1] = 0.0
        cost[:, b, b + 2 :] = summed[:, b, b + 1 :]
    best = np.full((n, n), np.inf)  # best[a, b]: cheapest way to have computed a, b as the last two
    best[prefix[-2] if len(prefix) > 1 else 0, prefix[-1]] = 0.0
    came_from = []
    for _ in range(calls - len(prefix)):
        through = best[:, :, None] + cost[:, :, :n]  # (a, b, j)
        came_from.append(through.argmin(axis=0))
        best = through.min(axis=0)
    a, b = divmod(int(np.argmin(best + cost[:, :, n])), n)
    plan = [b]
    for previous in reversed(came_from):
        a, b = int(previous[a, b]), a
        plan.append(b)
    return [*prefix[:-1], *plan[::-1]]


def rising(wanted: Array, steps: int) -> tuple[int, ...]:
    """Returns different step numbers from 0 near the wanted ones."""
    plan = [0]
    for j in range(1, len(wanted)):
        plan.append(min(max(round(float(wanted[j])), plan[-1] + 1), steps - len(wanted) + j))
    return tuple(plan)


def even_plan(steps: int, calls: int) -> list[int]:
    """Returns computed steps as far from each other as can be, from the first to the last but one.

    The last step of a run is the safest to forecast: nothing is computed from what it leads to.
    """
    if calls == steps:
        return list(range(steps))
    return [round(float(at)) for at in np.linspace(0, steps - 2, calls)]


def reuse_costs(errors: Array, sensitivity: Array) -> Array:
    """Returns the cost of computing step i and then step j, and reusing i in between, with shape (N, N + 1).

    The last column is the end of the run. Only i < j means something. The arguments are those of `best_plan`.
    """
    n = len(sensitivity)
    alone = errors[np.arange(n), np.arange(n)] * sensitivity  # (i, k): of k from i alone
    summed = np.concatenate([np.zeros((n, 1)), np.cumsum(alone, axis=1)], axis=1)
    return np.asarray(summed - np.diagonal(summed[:, 1:])[:, None])


def minmax_plan(costs: Array, calls: int) -> list[int]:
    """Returns the computed steps whose worst skip is the smallest; among these, whose second worst is, ...

    Skips are compared as LeMiCa does: their costs, as `reuse_costs` gives them, sorted from the worst, as words in a
    dictionary. Appending a cost to two such words of one length keeps their order, so dynamic programming is exact.
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


def plan_cost(errors: Array, sensitivity: Array, plan: Sequence[int]) -> float:
    """Returns the sum of weighted forecast errors of a plan: what `best_plan` makes small."""
    total = 0.0
    for i in sorted(set(range(len(sensitivity))) - set(plan)):
        known = [c for c in plan if c < i]
        total += sensitivity[i] * errors[known[-2] if len(known) > 1 else known[-1], known[-1], i]
    return float(total)


def shared_plans(errors: Array, sensitivity: Array, calls: Sequence[int], shared: int) -> list[list[int]]:
    """Returns plans with rising numbers of calls that begin with the same `shared` ones.

    Of many beginnings in the first half of the run the one is taken that costs the plans least: the smallest
    sum of the logarithms of their costs.
    """
    n, best, least = len(sensitivity), list[list[int]](), np.inf
    spaced = np.unique(np.geomspace(1, max(n // 2, 1), BEGINNINGS).round().astype(int)).tolist()
    for rest in itertools.combinations(spaced, shared - 1):
        if min(calls) < shared or max(calls) > n - max(rest, default=0) - 1 + shared:
            continue
        plans = [best_plan(errors, sensitivity, count, (0, *rest)) for count in calls]
        costs = [plan_cost(errors, sensitivity, plan) for plan in plans]
        total = float(np.log(np.maximum(costs, np.finfo(float).tiny)).sum())
        if total < least:
            best, least = plans, total
    if not best:
        raise ValueError(
            f"no plans of {', '.join(map(str, calls))} calls in {n} steps share {shared}: "
            f"share fewer, or take budgets of {shared} calls and more"
        )
    return best


def move_call(plan: tuple[int, ...], steps: int, rng: np.random.Generator, far: bool = False) -> tuple[int, ...]:
    """Returns a plan with one call, but the first, at another step: near by, or anywhere if it may go `far`."""
    free = sorted(set(range(1, steps)) - set(plan))
    if len(plan) < 2 or not free:
        return plan
    call = int(rng.choice(plan[1:]))
    reach = [step for step in free if far or abs(step - call) <= FARTHEST]
    return tuple(sorted({*plan, int(rng.choice(reach))} - {call})) if reach else plan
