"""Dynamic mode decomposition (Schmid, 2010), https://doi.org/10.1017/S0022112010001217."""

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field, PositiveFloat
from torch import Tensor

from ..fitting.kernel import Array
from ..step import Step
from .base import Forecast, Known, Weights, weighted_sum
from .newton import Newton


class DynamicModes(Forecast):
    """Decomposes the evenly spaced newest outputs into modes that grow, shrink and turn.

    The weights depend on the outputs: not a linear forecast, though the result is a combination of the
    kept outputs. Their inner products (at most 8 x 8 numbers) are read from the device at each
    skipped step. Exact on sums of as many exponentials as it has modes. With fewer than four evenly spaced
    outputs it is `newton` of order 1.
    """

    type: Literal["dmd"] = "dmd"
    history: Annotated[int, Field(ge=4, le=8)] = 6  # how many outputs are kept
    tolerance: PositiveFloat = 1e-4  # modes weaker than this, relative to the strongest, are dropped

    def weights(self, step: Step) -> Weights:
        return Newton(order=1).weights(step)  # while there is too little to decompose

    def combine(self, known: Known, step: Step) -> Tensor:
        past = step.past[: len(known.past)]
        count = evenly_spaced(past)
        if count < 4:
            return weighted_sum(self.weights(step), known)
        rows = torch.stack([value.flatten().float() for value in known.past[:count]])
        gram = (rows @ rows.T).double().cpu().numpy()[::-1, ::-1]  # oldest first
        ahead = (step.index - past[0]) / (past[0] - past[1])
        weights = mode_weights(gram, ahead, self.tolerance)[::-1]
        return weighted_sum(Weights(tuple(map(float, weights))), known)


def evenly_spaced(past: Sequence[int]) -> int:
    """Returns how many of the newest steps are evenly spaced."""
    gap, count = past[0] - past[1] if len(past) > 1 else 0, min(len(past), 2)
    while count < len(past) and past[count - 1] - past[count] == gap:
        count += 1
    return count


def mode_weights(gram: Array, ahead: float, tolerance: float) -> Array:
    """Returns the weights of K evenly spaced vectors that forecast the one `ahead` gaps after the last.

    Arguments:
        gram: Inner products of the vectors, oldest first, with shape (K, K).
        ahead: How far to go from the last, in gaps; fractions are possible.
        tolerance: Singular values below this, relative to the first, are dropped.
    """
    early, late = slice(None, -1), slice(1, None)
    values, vectors = np.linalg.eigh(gram[early, early])
    keep = values > tolerance**2 * values.max()
    basis = vectors[:, keep] / np.sqrt(values[keep])  # early @ basis is orthonormal
    operator = basis.T @ gram[early, late] @ basis  # the map from each vector to the next, in that basis
    growth, modes = np.linalg.eig(operator)
    start = np.linalg.solve(modes, basis.T @ gram[early, -1])
    inner = (modes @ (growth.astype(complex) ** ahead * start)).real
    weights = np.zeros(len(gram))
    weights[early] = basis @ inner
    # What of the last vector no earlier one has is kept as it is.
    project = basis @ (basis.T @ gram[early, -1])
    weights[early] -= project
    weights[-1] += 1.0
    return weights
