"""The search of a plan: proposals of planner and theory, and moves from the best, judged by matching on a few prompts.

What a plan is worth is the error that matched runs end with, which the planner's model knows roughly: it takes errors
to add up. So the model only says in which order plans are tried. Two plans that begin alike share the runs up to the
first difference, and the calls that are made for it are counted.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

from ..fitting.plan import best_plan, even_plan, plan_cost
from ..profile import Profile
from ..profiling.measure import Measurement
from ..runs import PromptSet, Setup
from .match import Fit, Matching, match

EFFORT = 12.0  # full runs of one prompt that a search may cost
JUDGES = (
    2  # prompts that plans are judged on: many plans on a few find more than a few on many, until these are overfit
)
TRUST = (0.5, 0.25, 0.75, 0.0, 1.0)  # exponents of the measured sensitivity
FARTHEST = 2  # steps that a call is moved by

Steps = tuple[int, ...]


@dataclass(frozen=True)
class Search:
    """What a search found.

    Arguments:
        plan: The best plan.
        start: The best of those it began with.
        tried: How many plans were matched.
        cost: Denoiser calls made, in full runs of one prompt.
    """

    plan: Steps
    start: Steps
    tried: int
    cost: float


def plans_for(profile: Profile, calls: int) -> dict[Steps, str]:
    """Returns the plans to begin with, each with where it comes from.

    The sensitivity of a step was measured without matching, which undoes much of an early error. So it is
    trusted in several degrees. With few calls in a rough run errors do not add up as planning assumes, and
    nothing beats even steps: these are always among them.
    """
    errors, plans = profile.errors, dict[Steps, str]()
    for trust in TRUST:
        plan = best_plan(errors, profile.sensitivity**trust, calls)
        plans.setdefault(tuple(plan), f"planner, trust {trust:g}")
    plans.setdefault(tuple(even_plan(profile.steps, calls)), "even steps")
    return plans


def moves(plan: Steps, steps: int) -> Iterator[Steps]:
    """Yields plans with one call, or two that follow each other, moved by a few steps; the first stays."""
    ways = [way for way in range(-FARTHEST, FARTHEST + 1) if way]
    for first in range(1, len(plan)):
        for way, both in itertools.product(ways, (False, True)):
            moved = [*plan]
            for number in range(first, min(first + 1 + both, len(plan))):
                moved[number] += way
            if moved[-1] < steps and all(a < b for a, b in itertools.pairwise(moved)):
                yield tuple(moved)


def judges_for(effort: float, prompts: int) -> int:
    """Returns on how many prompts plans are judged."""
    return min(JUDGES if effort < 2 * EFFORT else 2 * JUDGES, prompts)


def search_plan(
    setup: Setup, prompts: PromptSet, measurement: Measurement, calls: int, fit: Fit, effort: float = EFFORT
) -> Search:
    """Searches the plan with the smallest matched error.

    Arguments:
        setup: Who runs, and who shares the batches.
        prompts: The prompts of the measurement; the first few judge.
        measurement: What full runs on these prompts gave.
        calls: How many steps are computed.
        fit: What the forecasts may use.
        effort: Full runs of one prompt that it may cost; the planner's first proposal costs nothing.
    """
    profile, judges = measurement.profile, judges_for(effort, len(prompts))
    errors, weights = profile.errors, profile.sensitivity ** TRUST[0]
    few = measurement.head(judges, setup.batch_size, setup.ranks)
    spent, matchings, report = 0.0, 0, setup.stage(f"searching {calls} calls", max(round(effort), 1))
    tried = set[Steps]()

    def judge(plan: Steps, begun: Matching | None) -> Matching | None:
        """Returns what a plan is worth, or None where that costs more than is left."""
        nonlocal spent, matchings
        alike = min(set(plan) ^ set(begun.plan)) if begun else 0
        price = judges * (sum(step >= alike for step in plan) + (alike > 0)) / profile.steps
        tried.add(plan)
        left = math.floor((effort - spent - price) * profile.steps / judges + 1e-9)  # calls of each judge
        if left < 0 or left == 1:  # which no move could use: what was announced is spent to the last call
            return None
        found = match(setup, prompts[:judges], plan, few, fit, begun=begun)
        spent, matchings = spent + found.cost, matchings + 1
        report(round(spent))
        return found

    proposals = list(plans_for(profile, calls))
    if measurement.request:
        proposals = list(dict.fromkeys([*proposals, measurement.request.make(calls, fit.history).plan]))
    matched = [found for plan in proposals if (found := judge(plan, None))]
    if not matched:
        return Search(proposals[0], proposals[0], 0, 0.0)
    best = start = min(matched, key=lambda found: found.error)
    while True:
        near = sorted(set(moves(best.plan, profile.steps)) - tried, key=lambda plan: plan_cost(errors, weights, plan))
        better = (found for plan in near if (found := judge(plan, best)) and found.error < best.error)
        if (found := next(better, None)) is None:
            break
        best = found
    report(max(round(effort), 1))
    return Search(best.plan, start.plan, matchings, spent)
