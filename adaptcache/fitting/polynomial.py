"""Polynomials that rise, stay positive, and say how well they predict what they were not fitted to."""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls
from scipy.special import comb
from scipy.stats import spearmanr

from .kernel import Array


@dataclass(frozen=True)
class Rising:
    """A polynomial that rises from `low` to `high`; its coefficients have the highest power first."""

    coefficients: tuple[float, ...]
    low: float
    high: float

    def __call__(self, x: Array) -> Array:
        return np.asarray(np.polyval(self.coefficients, np.clip(x, self.low, self.high)))


def fit_rising(x: Array, y: Array, degree: int = 4) -> Rising:
    """Fits a polynomial that rises and is not negative on the range of the data.

    In Bernstein's basis a polynomial rises if its coefficients do, so the steps between them, and the
    first, are fitted by non-negative least squares. (Some rising polynomials of a degree are left out.)
    `x` and `y` have shape (M,).
    """
    low, high = float(x.min()), float(x.max())
    width = (high - low) or 1.0
    powers = np.arange(degree + 1)
    s = ((x - low) / width)[:, None]
    basis = comb(degree, powers) * s**powers * (1 - s) ** (degree - powers)
    rises = np.cumsum(basis[:, ::-1], axis=1)[:, ::-1]  # column k: all coefficients from k on are one
    bernstein = np.cumsum(nnls(rises, y)[0])
    unit = np.poly1d([0.0])
    for k, value in enumerate(bernstein):
        part = np.poly1d([1.0, 0.0]) ** k * np.poly1d([-1.0, 1.0]) ** (degree - k)
        unit = unit + part * float(value * comb(degree, k))
    moved = unit(np.poly1d([1 / width, -low / width]))  # from [0, 1] to the range
    return Rising(tuple(map(float, np.atleast_1d(moved.coefficients))), low, high)


def scores(predicted: Array, y: Array) -> tuple[float, float]:
    """Returns R2 and the rank correlation; zero where there is nothing to correlate."""
    spread = float(((y - y.mean()) ** 2).sum())
    r2 = 1 - float(((y - predicted) ** 2).sum()) / spread if spread else 0.0
    if np.ptp(predicted) == 0 or np.ptp(y) == 0:
        return r2, 0.0
    return r2, float(spearmanr(predicted, y).statistic)


def cross_validate(x: Array, y: Array, degree: int = 4) -> tuple[float, float]:
    """Returns R2 and rank correlation on prompts that the polynomial was not fitted to.

    `x` and `y` have shape (P, M), one row a prompt; each is predicted from the others.
    """
    if len(x) < 2:
        return 0.0, 0.0  # one prompt says nothing about another
    guesses = []
    for k in range(len(x)):
        rest = [j for j in range(len(x)) if j != k]
        guesses.append(fit_rising(x[rest].ravel(), y[rest].ravel(), degree)(x[k]))
    return scores(np.concatenate(guesses), y.ravel())
