"""Planners against brute force."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import toy

from adaptcache.calibration.search import plans_for
from adaptcache.fitting.kernel import pair_errors
from adaptcache.fitting.plan import best_plan, even_plan, minmax_plan, reuse_costs
from adaptcache.policies.plan import Plan

N = 8


def plans(calls):
    return [[0, *rest] for rest in itertools.combinations(range(1, N), calls - 1)]


@pytest.mark.parametrize("calls", range(1, N + 1))
def test_the_minmax_plan_is_the_lexicographically_smallest(calls):
    costs = np.random.default_rng(calls).integers(0, 6, (N, N + 1)).astype(float)  # ties on purpose

    def word(plan):
        return sorted((costs[i, j] for i, j in itertools.pairwise([*plan, N])), reverse=True)

    assert word(minmax_plan(costs, calls)) == min(map(word, plans(calls)))


@pytest.mark.parametrize("calls", range(1, N + 1))
def test_the_best_plan_has_the_smallest_sum(calls):
    rng = np.random.default_rng(calls)
    outputs = np.cumsum(rng.normal(size=(N, 20)), axis=0)
    errors, weights = pair_errors(outputs @ outputs.T), rng.uniform(0.1, 1, N)

    def total(plan):
        summed = 0.0
        for i in set(range(N)) - set(plan):
            known = [c for c in plan if c < i]
            summed += weights[i] * errors[known[-2] if len(known) > 1 else known[-1], known[-1], i]
        return summed

    assert total(best_plan(errors, weights, calls)) == pytest.approx(min(map(total, plans(calls))))


@pytest.mark.parametrize("steps", range(2, 31))
def test_an_even_plan_has_all_its_calls_and_gaps_that_differ_by_one(steps):
    for calls in range(1, steps):
        plan = even_plan(steps, calls)
        gaps = {b - a for a, b in itertools.pairwise(plan)}
        assert len(plan) == calls and plan[0] == 0 and plan[-1] == (steps - 2 if calls > 1 else 0)
        assert max(gaps, default=1) - min(gaps, default=1) <= 1 and min(gaps, default=1) >= 1
    assert even_plan(steps, steps) == list(range(steps))


@pytest.mark.parametrize("calls", range(1, N + 1))
def test_plans_worth_matching_are_those_of_the_planner_and_even_steps(calls):
    profile = toy.profile(N)
    found = plans_for(profile, calls)
    assert tuple(even_plan(N, calls)) in found
    assert tuple(best_plan(pair_errors(profile.kernel), profile.sensitivity, calls)) in found
    assert all(len(plan) == calls for plan in found)


def test_reuse_costs_are_the_sums_of_weighted_errors_in_between():
    rng = np.random.default_rng(0)
    outputs, weights = rng.normal(size=(N, 20)), rng.uniform(0.1, 1, N)
    errors = pair_errors(outputs @ outputs.T)
    costs = reuse_costs(errors, weights)
    for i, j in itertools.combinations(range(N + 1), 2):
        assert costs[i, j] == pytest.approx(sum(errors[i, i, k] * weights[k] for k in range(i + 1, j)))


def test_planners_weigh_errors_by_their_outcome_or_not():
    profile = toy.profile(N)
    heavy = replace(profile, sensitivities=np.where(np.arange(N) < 4, 1e6, 1e-6)[None])
    times = tuple(map(float, profile.times))
    for planner in ("sum", "minmax"):
        assert Plan.fit(heavy, budget=0.5, planner=planner).steps(times) == [0, 1, 2, 3]
        assert Plan.fit(heavy, budget=0.5, planner=planner, weighted=False).steps(times) != [0, 1, 2, 3]
