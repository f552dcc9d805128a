"""The mathematics, against brute force and closed form."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from adaptcache.fitting.kernel import (
    added_noise,
    fit_open_loop,
    forecast_error,
    pair_errors,
    resample_kernel,
    solve_ridge,
)
from adaptcache.fitting.plan import best_plan


def vectors(count: int, seed: int = 0, size: int = 40) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, size))


@pytest.mark.parametrize("calls", range(1, 8))
def test_best_plan_is_the_best_of_all(calls: int) -> None:
    n, rng = 7, np.random.default_rng(calls)
    errors, sensitivity = rng.random((n, n, n)), rng.random(n)

    def cost(plan: tuple[int, ...]) -> float:
        total = 0.0
        for i in set(range(n)) - set(plan):
            known = [c for c in plan if c < i]
            a, b = (known[-2], known[-1]) if len(known) > 1 else (0, 0)
            total += sensitivity[i] * errors[a, b, i]
        return total

    every = [(0, *rest) for rest in itertools.combinations(range(1, n), calls - 1)]
    found = best_plan(errors, sensitivity, calls)
    assert len(found) == calls
    assert cost(tuple(found)) == pytest.approx(min(map(cost, every)))


@pytest.mark.parametrize("calls", [0, 8])
def test_best_plan_names_the_bad_number_of_calls(calls: int) -> None:
    with pytest.raises(ValueError, match=rf"calls must be in \[1, 7\].*got {calls}"):
        best_plan(np.zeros((7, 7, 7)), np.ones(7), calls)


def test_open_loop_weights_are_the_least_squares_solution() -> None:
    u = vectors(5)
    exact = np.linalg.lstsq(u[[2, 1, 0]].T, u[4], rcond=None)[0]
    assert fit_open_loop(u @ u.T, 4, [2, 1, 0], ridge=1e-12) == pytest.approx(exact)


def test_forecast_error_is_the_squared_distance() -> None:
    u, w = vectors(4), np.array([0.7, -0.2])
    distance = np.sum((u[3] - w @ u[[1, 0]]) ** 2)
    assert forecast_error(u @ u.T, 3, [1, 0], w) == pytest.approx(distance)


def test_pair_errors_are_those_of_the_fitted_forecasts() -> None:
    u = vectors(5)
    gram = u @ u.T
    errors = pair_errors(gram, ridge=1e-9)
    for a, b, i in [(0, 0, 1), (2, 2, 4), (0, 2, 3), (1, 3, 4)]:
        sources = [b] if a == b else [b, a]
        expected = forecast_error(gram, i, sources, fit_open_loop(gram, i, sources, ridge=1e-9))
        assert errors[a, b, i] == pytest.approx(expected)


def test_pair_errors_with_latents_do_not_count_the_noise_of_the_sampler() -> None:
    n, rng = 5, np.random.default_rng(0)
    picture, noise = rng.normal(size=400), rng.normal(size=(n, 400))
    x = picture + noise  # of every step its own
    u = noise - 0.5 * picture  # what a denoiser says of it
    gram = np.concatenate([u, x]) @ np.concatenate([u, x]).T
    energy = np.diag(gram)[:n].mean()
    blind, seeing = pair_errors(gram[:n, :n]), pair_errors(gram, latents=True)
    assert seeing.shape == (n, n, n)
    assert (blind[0, 1:-1, -1] > 0.5 * energy).all() and seeing.max() < 1e-4 * energy
    exact = np.stack([u[2], u[1], x[2], x[1], x[0], x[4]])
    rest = u[4] - np.linalg.lstsq(exact.T, u[4], rcond=None)[0] @ exact
    assert pair_errors(gram, 1e-10, latents=True)[1, 2, 4] == pytest.approx(rest @ rest, abs=1e-5 * energy)
    assert added_noise(gram, n) > 0.1


def test_shrunk_weights_do_not_depend_on_the_scale_of_a_feature() -> None:
    a, b = vectors(3), vectors(1, seed=1)[0]
    scale = np.array([1.0, 100.0, 0.01])
    w = solve_ridge(a @ a.T, a @ b, np.zeros(3), ridge=0.1)
    scaled = a * scale[:, None]
    assert solve_ridge(scaled @ scaled.T, scaled @ b, np.zeros(3), ridge=0.1) * scale == pytest.approx(w)


def test_shrunk_weights_fall_back_on_the_prior_where_features_say_the_same() -> None:
    a = np.stack([vectors(1)[0]] * 2)  # the same feature twice: only the sum is determined
    w = solve_ridge(a @ a.T, a @ (3 * a[0]), np.array([2.0, 0.0]), ridge=1e-9)
    assert w == pytest.approx([2.5, 0.5])


def test_a_kernel_moved_to_its_own_times_is_unchanged() -> None:
    u, times = vectors(6), np.linspace(1, 0.1, 6)
    assert resample_kernel(u @ u.T, times, times) == pytest.approx(u @ u.T)


def test_a_moved_kernel_predicts_outputs_that_change_smoothly() -> None:
    a, b = vectors(2)

    def kernel(times: np.ndarray) -> np.ndarray:
        u = np.cos(2 * times)[:, None] * a + times[:, None] ** 2 * b
        return u @ u.T

    fine, coarse = np.linspace(1, 0.05, 30), np.linspace(1, 0.05, 17)
    assert resample_kernel(kernel(fine), fine, coarse) == pytest.approx(kernel(coarse), rel=1e-3, abs=1e-2)
