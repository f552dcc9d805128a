"""Errors and weights of linear forecasts, in closed form from inner products.

Let `G[i, j] = <u_i, u_j>` over a reference run, averaged over prompts: the *kernel*. The forecast
`sum_k w_k u_{c_k}` of `u_i` has the squared error `G_ii - 2 w.G_ci + w.G_cc.w`, so one profile gives
the error of any linear forecast from any computed steps, without running the model again. This
ignores that errors feed into later inputs; trajectory matching does not.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.interpolate import CubicSpline

Array = np.ndarray[Any, np.dtype[np.float64]]
RIDGE = 1e-6
LEAST_RIDGE = 1e-13  # just above rounding: two equal features leave the system solvable


def solve_ridge(gram: Array, moment: Array, prior: Array | None = None, ridge: float = RIDGE) -> Array:
    """Solves least squares from inner products, held near `prior` where the data say little.

    Minimises `w.gram.w - 2 w.moment + ridge * sum_k gram_kk (w_k - prior_k)^2`, which does not depend
    on the scale of the features. A feature that is zero, or that says what others say, keeps its prior.

    Arguments:
        gram: Inner products of the features, with shape (..., K, K).
        moment: Inner products of the features with the target, with shape (..., K).
        prior: The weights to fall back on, with shape (..., K); None reuses the first feature.
        ridge: Strength of the pull, relative to each feature's energy.

    Returns:
        The weights, with shape (..., K).
    """
    if prior is None:
        prior = np.zeros_like(moment)
        prior[..., 0] = 1.0
    scale = np.sqrt(np.maximum(np.diagonal(gram, axis1=-2, axis2=-1), np.finfo(float).tiny))
    normed = gram / (scale[..., :, None] * scale[..., None, :])
    rest = moment - (gram @ prior[..., None])[..., 0]
    system = normed + max(ridge, LEAST_RIDGE) * np.eye(gram.shape[-1])
    return prior + np.linalg.solve(system, (rest / scale)[..., None])[..., 0] / scale


def fit_open_loop(gram: Array, target: int, sources: list[int], ridge: float = RIDGE) -> Array:
    """Fits the weights that forecast one vector of a Gram matrix from others; the first is what reuse would take."""
    return solve_ridge(gram[np.ix_(sources, sources)], gram[sources, target], ridge=ridge)


def fit_open_loop_table(gram: Array, steps: Sequence[int], history: int) -> tuple[tuple[float, ...], ...]:
    """Returns the weights of all steps of a plan, fitted to the kernel: empty rows where computed."""
    table = []
    for i in range(len(gram)):
        known = [c for c in sorted(steps, reverse=True) if c < i][:history]
        table.append(() if i in steps else tuple(map(float, fit_open_loop(gram, i, known))))
    return tuple(table)


def forecast_error(gram: Array, target: int, sources: list[int], weights: Array) -> float:
    """Returns the squared error of a linear forecast."""
    inner = gram[np.ix_(sources, sources)]
    error = gram[target, target] - 2 * weights @ gram[sources, target] + weights @ inner @ weights
    return max(float(error), 0.0)  # rounding can leave a tiny negative number


def added_noise(gram: Array, steps: int) -> float:
    """Returns how much of the latents is new at a step: the median share of their energy.

    From inner products of N outputs and the N latents before them, with shape (2N, 2N).
    """
    shares = []
    for i in range(1, steps):
        known = range(max(0, i - 4), i)  # as far back as any multistep sampler looks
        sources = [steps + i - 1, *known, *(steps + k for k in known[-2::-1])]
        target = steps + i
        error = forecast_error(gram, target, sources, fit_open_loop(gram, target, sources))
        shares.append(error / max(float(gram[target, target]), np.finfo(float).tiny))
    return float(np.median(shares)) if shares else 0.0


def pair_errors(gram: Array, ridge: float = RIDGE, latents: bool = False) -> Array:
    """Returns the squared errors of the best forecasts from one or two computed steps.

    Arguments:
        gram: The kernel, with shape (N, N).
        latents: Whether the latents before these steps, before the forecast one and before the first are
            used too; then `gram` is of outputs and latents, with shape (2N, 2N).

    Returns:
        `errors[a, b, i]`: of step i from the computed steps a < b, and from b alone where a == b, with
        shape (N, N, N). Zero where i is not after b, as these are not forecasts.
    """
    n = len(gram) // 2 if latents else len(gram)
    errors = np.zeros((n, n, n))
    for b in range(n - 1):
        later = np.arange(b + 1, n)
        for a in range(b + 1):
            known = [b] if a == b else [b, a]
            rest = [n + step for step in (*known, 0)] if latents else []
            sources = np.array([[*known, *rest, *([n + i] if latents else [])] for i in later])
            inner, moment = gram[sources[:, :, None], sources[:, None]], gram[sources, later[:, None]]
            errors[a, b, later] = least_errors(inner, moment, gram[later, later], ridge)
    return errors


def least_errors(inner: Array, moment: Array, energy: Array, ridge: float = RIDGE) -> Array:
    """Returns the squared errors of M forecasts, each with the best weights for its K features, with shape (M,).

    Arguments:
        inner: Inner products of the features, with shape (M, K, K).
        moment: Those of the features with what is forecast, with shape (M, K).
        energy: Those of that with itself, with shape (M,).
    """
    w = solve_ridge(inner, moment, ridge=ridge)
    errors = energy - 2 * np.sum(w * moment, axis=1) + np.einsum("ik,ikl,il->i", w, inner, w)
    return np.asarray(np.maximum(errors, 0.0))


def resample_kernel(gram: Array, times: Array, wanted: Array) -> Array:
    """Returns the kernel at other times, by splines through its factor, which go on beyond its ends.

    Interpolating the factor and not the matrix keeps the result positive semi-definite.

    Arguments:
        gram: The kernel, with shape (N, N).
        times: Where it was measured, falling.
        wanted: The M times wanted.
    """
    if len(times) < 2:
        raise ValueError("a kernel measured at one time cannot be moved to another grid; calibrate on this grid")
    values, vectors = np.linalg.eigh((gram + gram.T) / 2)
    factor = vectors * np.sqrt(np.maximum(values, 0.0))
    moved = CubicSpline(times[::-1], factor[::-1])(wanted)
    return np.asarray(moved @ moved.T)
