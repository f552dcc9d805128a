"""Predictions of quality, and plans that begin alike, against closed forms and brute force."""

import itertools

import numpy as np
import pytest
import torch

from adaptcache.fitting.kernel import pair_errors
from adaptcache.fitting.plan import best_plan, plan_cost, shared_plans
from adaptcache.fitting.signals import WIDTHS, build_regression, fit_quality
from adaptcache.policies.signals import QualityPredictor, fit_band

N = 9


def signals(count=60, seed=0):
    return np.random.default_rng(seed).normal(size=(count, 3))


def shape(name, s):
    """Values that one kind of regression is made for."""
    match name:
        case "mean":
            return np.random.default_rng(1).normal(40, 3, len(s))
        case "linear":
            return 40 + s @ np.array([3.0, -2.0, 0.5])
        case "quadratic":
            return 40 + 3 * s[:, 0] * s[:, 1] - 2 * s[:, 2] ** 2
        case _:
            return 40 + 6 * np.sin(2.2 * s[:, 0])


@pytest.mark.parametrize("name", ["mean", "linear", "quadratic", "rbf"])
def test_the_kind_that_fits_is_kept_and_tells_how_well_on_prompts_left_out(name):
    s = signals()
    y = shape(name, s)
    fit = fit_quality(s, y)
    best, r2 = max(fit.scores, key=fit.scores.get), fit.numbers["r2"]
    assert best.startswith(name) and r2 == fit.scores[best]
    assert r2 == pytest.approx(1 - ((y - fit.left_out) ** 2).sum() / ((y - y.mean()) ** 2).sum())
    assert r2 > 0.3 or name == "mean"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("prompts", [2, 3, 4])
def test_few_prompts_tell_no_more_than_they_can(prompts):
    assert np.isfinite(fit_quality(signals(prompts), signals(prompts)[:, 0]).left_out).all()


@pytest.mark.parametrize("name", ["mean", "linear", "quadratic", WIDTHS[1]])
def test_a_prediction_on_the_device_is_the_regression(name):
    s = signals()
    fit = fit_quality(s, shape(name, s), ("mean", name))
    new = 2 * signals(20, seed=5)  # beyond what was seen, so that it is clipped
    expected = build_regression(name, 3).fit(s, shape(name, s)).predict(new)
    assert predict(fit, new) == pytest.approx(expected, rel=1e-4)


def predict(fit, s):
    """What a schedule that keeps these numbers predicts."""
    return QualityPredictor(**fit.numbers).predict(torch.from_numpy(s).float()).numpy()


def test_beyond_what_was_seen_a_prediction_stays_what_it_was_at_the_edge():
    s = signals()
    fit = fit_quality(s, shape("linear", s))
    far, edge = np.full((1, 3), 1e3), s.max(axis=0)[None]
    assert predict(fit, far) == pytest.approx(predict(fit, edge))


def test_a_band_holds_what_was_seen_and_nearly_all_of_the_same_kind():
    rng = np.random.default_rng(0)
    low, high = fit_band(rng.normal(-2, 0.3, 80))
    more = rng.normal(-2, 0.3, 10_000)
    assert ((more < low) | (more > high)).mean() < 0.01 and high < -0.5


def costs(seed):
    rng = np.random.default_rng(seed)
    outputs = np.cumsum(rng.normal(size=(N, 20)), axis=0)
    return pair_errors(outputs @ outputs.T), rng.uniform(0.1, 1, N)


@pytest.mark.parametrize("calls", [3, 4, 6])
@pytest.mark.parametrize("prefix", [(0,), (0, 2), (0, 1, 4)])
def test_the_best_plan_with_a_beginning_is_the_best_of_all_that_begin_so(calls, prefix):
    errors, weights = costs(calls)
    rest = range(prefix[-1] + 1, N)
    every = [[*prefix, *more] for more in itertools.combinations(rest, calls - len(prefix))]
    found = best_plan(errors, weights, calls, prefix)
    least = min(plan_cost(errors, weights, plan) for plan in every)
    assert found[: len(prefix)] == list(prefix) and len(found) == calls
    assert plan_cost(errors, weights, found) == pytest.approx(least)


def test_a_beginning_that_leaves_too_few_steps_is_refused():
    errors, weights = costs(0)
    with pytest.raises(ValueError, match=r"no plan of 4 calls in 9 steps begins with \[0, 7\]"):
        best_plan(errors, weights, 4, (0, 7))


def test_plans_that_begin_alike_begin_as_costs_them_least():
    errors, weights = costs(1)
    plans = shared_plans(errors, weights, [3, 4, 6], 2)
    assert len({tuple(plan[:2]) for plan in plans}) == 1 and [len(plan) for plan in plans] == [3, 4, 6]

    def total(second):
        every = [best_plan(errors, weights, calls, (0, second)) for calls in (3, 4, 6)]
        return sum(np.log(plan_cost(errors, weights, plan)) for plan in every)

    assert total(plans[0][1]) == pytest.approx(min(map(total, range(1, 5))))
    with pytest.raises(ValueError, match="share fewer"):
        shared_plans(errors, weights, [2, 9], 3)
