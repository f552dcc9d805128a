"""What is needed of a batch to solve for weights: inner products."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..fitting.kernel import Array
from ..gate import Update
from ..profiling.statistics import check_finite, part

__all__ = ["Moments", "moments_of"]


@dataclass(frozen=True)
class Moments:
    """What one batch gives at a meeting: inner products, summed over its samples.

    Arguments:
        index: The number of the step.
        track: Which scheduler.
        past: The numbers of the computed steps, newest first.
        gram: Of the K features with each other, with shape (K, K).
        moment: Of the features with the target, with shape (K,).
    """

    index: int
    track: int
    past: tuple[int, ...]
    gram: Array
    moment: Array


def moments_of(
    update: Update, features: Sequence[Tensor], target: Tensor, samples: int, first: int = 0
) -> Moments:
    """Returns the inner products, each sample divided by the energy of its target."""
    for feature in (*features, target):
        check_finite(feature, "by this plan, what a forecast needs", update.step.index, first, samples)
    gram, moment = np.zeros((len(features),) * 2), np.zeros(len(features))
    for k in range(samples):
        a = torch.stack([part(feature, k, samples).flatten() for feature in features]).double()
        b = part(target.to(features[0].device), k, samples).flatten().double()
        energy = float(b @ b) or 1.0
        gram += (a @ a.T).cpu().numpy() / energy
        moment += (a @ b).cpu().numpy() / energy
    return Moments(update.step.index, update.track, update.step.past, gram, moment)
