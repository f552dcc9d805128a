"""The model output that a skipped step should have had."""

from __future__ import annotations

import torch
from torch import Tensor

from ..gate import Update

__all__ = ["target_of"]

FLAT = 1e-6  # below this slope, relative to the latents, a step does not depend on the model output


def target_of(update: Update, y: Tensor) -> Tensor | None:
    """Returns the model output with which this step lands on `y`; None where that cannot be told.

    Schedulers are affine in the model output (stochastic ones for a given noise): two dry steps give
    the slope, a third checks it, as clipping and thresholding break the rule. In half precision a step
    is lost in the rounding of the latents, so these are made in single precision.
    """
    single = torch.zeros_like(update.move.u, dtype=torch.float32)
    zero, one, two = (update.move.dry(single + value) for value in (0.0, 1.0, 2.0))
    slope, again = one - zero, two - one
    size = slope.abs().mean()
    if size <= FLAT * zero.abs().mean() or (again - slope).abs().max() > 0.05 * size:
        return None
    if update.move.u.dtype != torch.float32:  # other noise is drawn there
        zero = update.move.dry(torch.zeros_like(update.move.u)).float()
    return (y.to(zero) - zero) / slope.mean()
