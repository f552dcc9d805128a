"""The search of a plan: proposals of planner and theory, and moves from the best, judged by matching on a few prompts.

What a plan is worth is the error that matched runs end with, which the planner's model knows roughly: it takes errors
to add up. So the model only says in which order plans are tried. Two plans that begin alike share the runs up to the
first difference, and the calls that are made for it are counted: those that were announced are made, and no others.
Prompts disagree about plans, so those judge that say what all of them would.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ..fitting.kernel import Array, least_errors
from ..fitting.plan import best_plan, even_plan, plan_cost
from ..profile import Profile
from ..profiling.measure import Measurement
from .match import Fit, Matching, match

EFFORT, SEARCHED = 12.0, 0.3  # full runs of one prompt that a search may cost, and its share of a larger effort
LEAST, PROPOSALS = 3, 6  # prompts that judge at least, and plans whose judging takes a quarter of the effort
FIRM = 10  # times the ridge where few prompts judge: fitted to these alone, weights hide what a plan lacks
TRUST = (0.5, 0.25, 0.75, 0.0, 1.0)  # exponents of the measured sensitivity
FARTHEST = 2  # steps that a call is moved by

Steps = tuple[int, ...]


@dataclass(frozen=True)
class Search:
    """What a search found."""

    plan: Steps  # the best plan
    start: Steps  # the best of those it began with
    tried: int  # how many plans were matched
    cost: float  # denoiser calls made, in full runs of one prompt
    judges: Sequence[int]  # the numbers of the prompts that judged
    # plans that were matched on all prompts, as the judges disagreed about where to begin
    whole: Mapping[Steps, Matching] = field(default_factory=dict, repr=False)
    judged: Sequence[Steps] = ()  # all plans that were matched, the best first


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


def moves(plan: Steps, steps: int, farthest: int = FARTHEST) -> Iterator[Steps]:
    """Yields plans with one call, or two that follow each other, moved by a few steps; the first stays."""
    ways = [way for way in range(-farthest, farthest + 1) if way]
    for first in range(1, len(plan)):
        for way, both in itertools.product(ways, (False, True)):
            moved = [*plan]
            for number in range(first, min(first + 1 + both, len(plan))):
                moved[number] += way
            if moved[-1] < steps and all(a < b for a, b in itertools.pairwise(moved)):
                yield tuple(moved)


def searched(effort: float) -> float:
    """Returns what of an effort goes into the plan; the rest goes into its weights."""
    return min(effort, max(EFFORT, SEARCHED * effort))


def judges_for(effort: float, budget: float, prompts: int) -> int:
    """Returns on how many prompts plans of a budget are judged."""
    return min(max(round(effort / (4 * PROPOSALS * budget)), LEAST), prompts)


@dataclass(frozen=True)
class SearchCost:
    """What the search of a plan costs, known before anything is run."""

    judges: int  # how many prompts judge
    room: int  # calls that each of them makes, all told
    # plans that are matched on all prompts: what it began with, what it found or its second best, and one more where
    # that is half of the effort at most
    finals: int
    afresh: bool  # whether all plans there are can be matched from their first step

    @classmethod
    def of(cls, effort: float, steps: int, calls: int, prompts: int, finals: int = 3) -> SearchCost:
        """Returns what a search costs for an effort in full runs of one prompt."""
        judges, plans = judges_for(effort, calls / steps, prompts), math.comb(steps - 1, calls - 1)
        spare = effort * steps - prompts * calls  # beside a third plan; the search has to find as many plans
        third = finals > 2 and judges < prompts and plans > 2 and spare >= calls * max(prompts, 3 * judges)
        most = int((effort * steps - third * prompts * calls) / judges + 1e-9)
        room = min(most, plans * calls)
        room -= calls == 2 and room % 2  # every plan costs two
        return cls(judges, room, 2 + third, most >= plans * calls) if room >= 2 * calls else cls(judges, 0, 1, False)


def choose_judges(profile: Profile, plans: Iterable[Steps], count: int, batch_size: int) -> int:
    """Returns the first of `count` prompts in a row that say most nearly what all of them say of plans.

    Prompts disagree about plans. Each one's own inner products tell what errors to expect, so those that judge for all
    can be chosen before anything is run.
    """
    costs = np.log([prompt_costs(profile, plan) for plan in plans])  # (plans, prompts)
    costs -= costs.mean(axis=0)
    rows = range(costs.shape[1] - count + 1)
    able = [first for first in rows if first % batch_size == 0 or first % batch_size + count <= batch_size]
    return min(able, key=lambda first: np.square(costs[:, first : first + count].mean(1) - costs.mean(1)).sum())


def prompt_costs(profile: Profile, plan: Sequence[int]) -> Array:
    """Returns the sum of weighted forecast errors of a plan by prompt, with shape (P,)."""
    gram, steps, latents = profile.gram, profile.steps, profile.gram.shape[-1] > profile.steps
    total, weights = np.full(len(gram), np.finfo(float).tiny), profile.sensitivity ** TRUST[0]
    for i in sorted(set(range(steps)) - set(plan)):
        known = [step for step in reversed(plan) if step < i][:2]
        sources = [*known, *(steps + step for step in (*known, 0, i) if latents)]
        inner, moment = gram[:, sources][:, :, sources], gram[:, sources, i]
        total += weights[i] * least_errors(inner, moment, gram[:, i, i])
    return total


def plan_costs(errors: Array, sensitivity: Array, plan: Steps) -> list[float]:
    """Returns the logarithm of what the planner expects of a plan, for each trust in the sensitivity."""
    tiny = np.finfo(float).tiny
    return [math.log(max(plan_cost(errors, sensitivity**trust, plan), tiny)) for trust in TRUST]


def most_alike(costs: Sequence[Sequence[float]], ends: Sequence[float]) -> int:
    """Returns the number of the trust whose costs rise and fall most like what plans were worth."""
    spread = np.array(costs) - np.mean(costs, axis=0)
    norms = np.linalg.norm(spread, axis=0)
    return int(np.argmax((np.array(ends) - np.mean(ends)) @ spread / np.where(norms > 0, norms, np.inf)))


def search_plan(measurement: Measurement, calls: int, fit: Fit, announced: SearchCost) -> Search:
    """Searches the plan with the smallest matched error; a few of the prompts judge, at the announced cost."""
    setup, profile, steps, judges = measurement.setup, measurement.profile, measurement.profile.steps, announced.judges
    costs = functools.partial(plan_costs, profile.errors, profile.sensitivity)
    proposals = list(plans_for(profile, calls))
    if not announced.room:
        return Search(proposals[0], proposals[0], 0, 0.0, range(0))
    if measurement.request:
        proposals = list(dict.fromkeys([*proposals, measurement.request.make(calls, fit.history).plan]))
    near = [proposals[0], *moves(proposals[0], steps)]
    first = choose_judges(profile, [*proposals, *near], judges, setup.batch_size)
    few, firm = replace(measurement.head(judges, first), profile=profile), replace(fit, ridge=FIRM * fit.ridge)
    left, made, report = announced.room, 0.0, setup.stage(f"searching {calls} calls", announced.room)
    tried = dict[Steps, float]()  # with the logarithms of their errors

    def spend(plan: Steps, cost: int, begun: Matching | None) -> Matching:
        """Matches a plan for a number of calls: as much is replayed as leaves so many."""
        nonlocal left, made
        begun = replace(begun, until=min(begun.until, plan[calls - cost + 1])) if begun and cost < calls else None
        found = match(few, plan, firm, begun=begun)
        left, made = left - cost, made + found.cost  # more where calls were made that no plan has
        tried[plan] = math.log(found.error)
        report(announced.room - left)
        return found

    def price(plan: Steps, begun: Matching | None) -> int:
        """Returns what a plan costs, with what another one shares."""
        alike = min(set(plan) ^ set(begun.plan)) if begun and not announced.afresh else 0
        cost = sum(step >= alike for step in plan) + (alike > 0)
        return cost + (left == cost + 1)  # a single call would be of no use

    def judge(plan: Steps, begun: Matching | None) -> Matching | None:
        """Returns what a plan is worth, or None where that costs more than is left."""
        cost = price(plan, begun)
        return spend(plan, cost, begun) if cost <= min(left, calls) else None

    matched = list[Matching]()
    for plan in proposals:
        shared = max(matched, key=lambda found: min(set(plan) ^ set(found.plan)), default=None)
        matched += filter(None, [judge(plan, shared)])
    best, *others = kept = sorted(matched, key=lambda found: found.error)
    rivals, whole = [found for found in others if min(found.ends - best.ends) < 0], dict[Steps, Matching]()
    if rivals and announced.finals > 2:  # judges that disagree about where to begin are not enough
        for number, found in enumerate((best, rivals[0])):
            counted = setup.stage(f"matching {calls} calls", announced.finals * steps, number * steps)
            whole[found.plan] = match(measurement, found.plan, fit, counted)
            counted(steps)
        best = min(best, rivals[0], key=lambda found: whole[found.plan].error)
    start, walked = best, set[tuple[int, Steps]]()
    while left > 1:  # from the best; when all its moves are tried, from the next; then farther ones
        turns = ((way, found) for way in (FARTHEST, steps) for found in kept if (way, found.plan) not in walked)
        way, base = min(turns, key=lambda turn: (turn[0], turn[1] is not best, turn[1].error), default=(0, best))
        if not way:  # no other plan can be paid: what was announced is made all the same
            spend(base.plan, min(left, calls) - (left == calls + 1), base)
            continue
        trust = most_alike([costs(plan) for plan in tried], list(tried.values()))
        near = [plan for plan in {*moves(base.plan, steps, way)} - {*tried} if price(plan, base) <= left]
        for plan in sorted(near, key=lambda plan: costs(plan)[trust]):
            if one := judge(plan, base):
                kept = sorted([*kept, one], key=lambda found: found.error)[:PROPOSALS]
                if one.error < best.error:
                    best = one
                    break
        else:
            walked.add((way, base.plan))
    report(announced.room)
    judged = sorted(tried, key=tried.__getitem__)
    return Search(best.plan, start.plan, len(tried), made, range(first, first + judges), whole, judged)
