"""At which steps each block or layer is computed: a row of steps for each.

References:
    | Block Caching (Wimbauer et al., 2023), https://arxiv.org/abs/2312.03209
    | ProfilingDiT (Ma et al., 2025), https://arxiv.org/abs/2504.03140
"""

from collections.abc import Callable

import numpy as np

from .kernel import Array
from .plan import rising

HALVINGS = 60
SLOWER = 2  # times longer the interval of the calmer half is


def cheapest_rows(errors: Array, weights: Array, seconds: Array, budget: float) -> list[list[int]]:
    """Returns the steps of each block that cost least where all together spend a budget of time.

    Errors of skipped blocks are taken to add up. Then for a given price of a second each block has its own best
    plan, found exactly by dynamic programming, and the price is halved until the budget is spent.

    Arguments:
        errors: Squared error of reusing step i at step i + 1 + k, with shape (K, N, L).
        weights: What an error at each step does to the end result, with shape (N,).
        seconds: How long each block takes, with shape (K,).
        budget: The fraction of the time of all blocks and steps, in (0, 1].

    Returns:
        By block its computed steps, rising from 0: the dearest rows within the budget, or, where an output may not be
        reused for long enough, those that compute least.
    """
    count, steps, longest = errors.shape
    # cost[k, i, j]: of computing block k at step i, then at j, and reusing in between; the last column is the end.
    cost = np.full((count, steps, steps + 1), np.inf)
    for i in range(steps):
        cost[:, i, i + 1] = 0.0
        for gap in range(1, min(longest, steps - 1 - i) + 1):
            cost[:, i, i + gap + 1] = cost[:, i, i + gap] + errors[:, i, gap - 1] * weights[i + gap]

    def rows_at(price: float) -> list[list[int]]:
        return [_cheapest(cost[k], price * float(seconds[k])) for k in range(count)]

    def spent(rows: list[list[int]]) -> float:
        return float(np.dot([len(row) for row in rows], seconds) / (steps * seconds.sum()))

    return _within(rows_at, spent, budget)


def _cheapest(cost: Array, price: float) -> list[int]:
    """Returns the steps of one block where each computed step costs a price."""
    steps = len(cost)
    best, after = np.zeros(steps + 1), np.zeros(steps, dtype=int)
    for i in reversed(range(steps)):
        ways = cost[i, i + 1 :] + best[i + 1 :]
        after[i] = i + 1 + int(ways.argmin())
        best[i] = price + ways.min()
    row, at = list[int](), 0
    while at < steps:
        row.append(at)
        at = int(after[at])
    return row


def accumulated_rows(changes: Array, budget: float) -> list[list[int]]:
    """Returns rows that reuse a block until its changes since then reach a threshold in sum: Block Caching.

    Changes are relative, of what each block gives since the step before, with shape (K, N).
    """
    count, steps = changes.shape

    def rows_at(threshold: float) -> list[list[int]]:
        rows = []
        for row in changes:
            computed, total = [0], 0.0
            for step in range(1, steps):
                total += row[step]
                if total > threshold:
                    computed.append(step)
                    total = 0.0
            rows.append(computed)
        return rows

    return _within(rows_at, lambda rows: sum(map(len, rows)) / (count * steps), budget)


def two_speed_rows(changes: Array, budget: float) -> list[list[int]]:
    """Returns rows of two intervals: the half of the blocks that changes less is computed less often: ProfilingDiT."""
    count, steps = changes.shape
    calm = changes.mean(1) <= np.median(changes.mean(1))

    def rows_at(interval: float) -> list[list[int]]:
        every = max(1, round(interval))
        return [list(range(0, steps, SLOWER * every if quiet else every)) for quiet in calm]

    candidates = [rows_at(interval) for interval in range(1, steps + 1)]
    return min(candidates, key=lambda rows: abs(sum(map(len, rows)) / (count * steps) - budget))


def _within(
    rows_at: Callable[[float], list[list[int]]], spent: Callable[[list[list[int]]], float], budget: float
) -> list[list[int]]:
    """Returns the rows that spend most of a budget; the higher the knob, the less they compute."""
    if not 0 < budget <= 1:
        raise ValueError(f"budget must be in (0, 1], got {budget:g}: the fraction of the blocks that is computed")
    low, high = 1e-12, 1e12
    if spent(rows := rows_at(0.0)) <= budget:
        return rows
    rows = rows_at(high)
    for _ in range(HALVINGS):
        middle = float(np.sqrt(low * high))
        found = rows_at(middle)
        if spent(found) <= budget:
            rows, high = found, middle
        else:
            low = middle
    return rows


def turning_plan(kernel: Array, calls: int) -> list[int]:
    """Returns the steps at equal shares of how far the trajectory turns, by the inner products of outputs (N, N).

    References:
        | OmniCache (Chu et al., 2025), https://arxiv.org/abs/2508.16212
    """
    steps, length = len(kernel), np.sqrt(np.diagonal(kernel))
    cosine = np.diagonal(kernel, 1) / np.maximum(length[1:] * length[:-1], 1e-30)
    turned = np.concatenate([[0.0], np.cumsum(np.arccos(np.clip(cosine, -1.0, 1.0)))])
    turned = turned / max(turned[-1], 1e-30) + 1e-9 * np.arange(steps)  # rises where nothing turns
    return list(rising(np.searchsorted(turned, turned[-1] * np.arange(calls) / calls), steps))


def interpolated_plan(safe: list[int], fast: list[int], calls: int) -> list[int]:
    """Returns a plan between a safe one and a fast one with fewer calls, by interpolation of their quantiles.

    References:
        | OTCache (2026), https://arxiv.org/abs/2606.31026 (transport between budgets)
    """
    if not len(fast) <= calls <= len(safe):
        raise ValueError(f"calls must be from {len(fast)} to {len(safe)}, between the two plans, got {calls}")
    if len(fast) == len(safe):
        return list(safe)
    part = (calls - len(fast)) / (len(safe) - len(fast))
    at = np.linspace(0, 1, calls)
    mixed = sum(
        share * np.interp(at, np.linspace(0, 1, len(plan)), plan) for share, plan in ((part, safe), (1 - part, fast))
    )
    plan = [0]
    for wanted in np.asarray(mixed)[1:]:
        plan.append(max(plan[-1] + 1, round(float(wanted))))
    most = max(safe[-1], fast[-1])
    for k in reversed(range(1, calls)):  # what was pushed beyond the end comes back
        plan[k] = min(plan[k], most - (calls - 1 - k))
    return plan
