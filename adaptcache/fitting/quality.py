"""Predicts the quality a run will end with from what was seen at its first computed steps.

Candidates are compared by cross-validation over prompts; the best is fitted to all of them and kept as a
polynomial of degree one or two, or as a sum of bumps around the prompts it was fitted on (kernel ridge
regression): plain numbers that run on any device without scikit-learn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .kernel import Array

__all__ = ["Fitted", "fit_quality", "predicted"]

FOLDS = 10
RIDGES = np.logspace(-2, 4, 25)
FIRMNESS = 0.5  # ridge of the bumps: signals explain about half of the variance
WIDTHS = ("bumps 0.02", "bumps 0.1", "bumps 0.5")  # times the number of signals
WORTH = 0.02  # of R2, that a candidate has to gain over a simpler one


@dataclass(frozen=True)
class Fitted:
    """A regression as plain numbers: of `z = (clip(s, low, high) - centre) / scale`.

    Arguments:
        low: The smallest signals that were seen, with shape (F,): beyond is unknown, so signals are clipped.
        high: The largest ones, with shape (F,).
        centre: With shape (F,).
        scale: With shape (F,).
        constant: What is predicted besides.
        linear: The weights of z, with shape (F,).
        square: The weights of the products z_i z_j with i <= j, row by row; empty for degree one.
        around: Centres of the bumps exp(-width |z - centre|^2), with shape (M, F); empty without.
        heights: The bumps' heights, with shape (M,).
        width: The bumps' width, as above.
        r2: Share of the variance that was explained on prompts left out of the fit; may be negative.
        scores: The same for each candidate.
    """

    low: Array
    high: Array
    centre: Array
    scale: Array
    constant: float
    linear: Array
    square: Array
    around: Array
    heights: Array
    width: float
    r2: float
    scores: dict[str, float]


def folds(count: int) -> list[np.ndarray]:
    """Returns the numbers of the prompts that are left out together; the same for all candidates."""
    order = np.random.default_rng(0).permutation(count)
    return [order[k::FOLDS] for k in range(min(FOLDS, count))]


def products(z: Array) -> Array:
    """Returns z and the products of its entries, with shape (P, F + F (F + 1) / 2)."""
    rows, columns = np.triu_indices(z.shape[1])
    return np.concatenate([z, z[:, rows] * z[:, columns]], axis=1)


def _ridge(z: Array, y: Array) -> tuple[Array, float]:
    from sklearn.linear_model import RidgeCV

    line = RidgeCV(RIDGES).fit(z, y)
    return np.asarray(line.coef_), float(line.intercept_)


def _bumps(z: Array, y: Array, width: float) -> tuple[Array, float]:
    from sklearn.kernel_ridge import KernelRidge

    centre = float(y.mean())
    found = KernelRidge(alpha=FIRMNESS, kernel="rbf", gamma=width).fit(z, y - centre)
    return np.asarray(found.dual_coef_), centre


def _assembled(name: str, s: Array, y: Array) -> Fitted:
    """Fits one candidate to all rows."""
    centre, scale = s.mean(axis=0), np.maximum(s.std(axis=0), 1e-6)
    z, none = (s - centre) / scale, np.zeros(0)
    linear, square, around, heights, width = np.zeros(s.shape[1]), none, np.zeros((0, s.shape[1])), none, 0.0
    constant = float(y.mean())
    if name == "linear":
        linear, constant = _ridge(z, y)
    elif name == "quadratic":
        weights, constant = _ridge(products(z), y)
        linear, square = weights[: s.shape[1]], weights[s.shape[1] :]
    elif name.startswith("bumps"):
        around, width = z, float(name.removeprefix("bumps ")) / s.shape[1]
        heights, constant = _bumps(z, y, width)
    return Fitted(
        s.min(axis=0), s.max(axis=0), centre, scale, constant, linear, square, around, heights, width, 0.0, {}
    )


def predicted(fit: Fitted, signals: Array) -> Array:
    """Returns the predictions for signals with shape (P, F), with shape (P,)."""
    z = (np.clip(signals, fit.low, fit.high) - fit.centre) / fit.scale
    value = fit.constant + z @ fit.linear
    if len(fit.square):
        value = value + products(z)[:, z.shape[1] :] @ fit.square
    if len(fit.heights):
        apart = ((z[:, None] - fit.around[None]) ** 2).sum(axis=2)
        value = value + np.exp(-fit.width * apart) @ fit.heights
    return np.asarray(value)


def left_out(make: Callable[[Array, Array], Fitted], s: Array, y: Array) -> Array:
    """Returns predictions for each prompt from fits to the others, with shape (P,)."""
    guesses = np.zeros(len(y))
    for out in folds(len(y)):
        rest = np.setdiff1d(np.arange(len(y)), out)
        guesses[out] = predicted(make(s[rest], y[rest]), s[out])
    return guesses


def fit_quality(signals: Array, values: Array, names: tuple[str, ...] = ()) -> tuple[Fitted, Array]:
    """Compares the candidates and returns the best one, fitted to all prompts. Needs scikit-learn.

    Arguments:
        signals: What was seen, with shape (P, F).
        values: What the runs ended with, in decibels, with shape (P,).
        names: The candidates, the simplest first; by default "mean", "linear", and with enough prompts
            "quadratic" and "bumps" of three widths.

    Returns:
        The regression, and the predictions it was judged by, each from the other prompts, with shape (P,).
    """
    names = names or ("mean", "linear", *(("quadratic", *WIDTHS) if len(values) >= 2 * FOLDS else ()))
    spread = float(((values - values.mean()) ** 2).sum()) or 1.0
    guesses = {name: left_out(lambda s, y, n=name: _assembled(n, s, y), signals, values) for name in names}  # type: ignore[misc]
    scores = {name: 1 - float(((values - guess) ** 2).sum()) / spread for name, guess in guesses.items()}
    best = names[0]
    for name in names[1:]:
        if scores[name] > scores[best] + WORTH:
            best = name
    fitted = _assembled(best, signals, values)
    return Fitted(**{**vars(fitted), "r2": scores[best], "scores": scores}), guesses[best]
