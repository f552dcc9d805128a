"""Weights of classical forecasts: polynomials through known points, and backward differences."""

import math
from collections.abc import Sequence

import numpy as np

from .kernel import Array


def lagrange(known: Sequence[float], at: float) -> tuple[float, ...]:
    """Returns the weights with which values at `known` give their polynomial at another point.

    Lagrange's form: nothing to keep between steps, and steps may be unevenly spaced.
    """
    return tuple(math.prod((at - b) / (a - b) for b in known if b != a) for a in known)


def mean_weights(known: Sequence[float], start: float, end: float) -> tuple[float, ...]:
    """Returns the weights that give the mean of the polynomial between two points.

    Gauss quadrature with as many nodes as values is exact for their polynomial.
    """
    nodes, shares = np.polynomial.legendre.leggauss(len(known))
    points = (start + end) / 2 + (end - start) / 2 * nodes
    table = np.array([lagrange(known, float(point)) for point in points])
    return tuple(map(float, shares @ table / 2))


def backward(known: Sequence[float], order: int) -> Array:
    """Returns the weights of recursive backward differences at the newest point.

    The difference of order j + 1 is that of order j now, less that of order j at the point before, over
    the distance to it: what TaylorSeer keeps. These are not Newton's divided differences, which divide
    by the distance to the j-th point before: the limit is the j-th derivative, without the factor 1/j!.

    Arguments:
        known: Where the values are, newest first, with shape (K,).
        order: The highest order; at most K - 1 are possible.

    Returns:
        One row an order, from 0, with shape (min(order, K - 1) + 1, K).
    """
    count = len(known)
    level = np.eye(count)  # level[c]: the difference at point c, as weights of the values
    rows = [level[0]]
    for _ in range(min(order, count - 1)):
        gaps = np.array([known[c] - known[c + 1] for c in range(len(level) - 1)])
        level = (level[:-1] - level[1:]) / gaps[:, None]
        rows.append(level[0])
    return np.stack(rows)
