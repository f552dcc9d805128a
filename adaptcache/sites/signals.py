"""What dynamic policies look at: the tensor that enters a site, and how far it is from another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ..agreement import Groups, highest

__all__ = ["TINY", "Signal", "entering", "relative_change", "worst"]

# "none": nothing, so nothing is paid; "input": what enters the site; "modulated": that, after the first
# block's normalisation and modulation by the time (TeaCache); "residual": what the blocks before the
# site have added (FBCache). The site `step` knows the first two only.
Signal = Literal["none", "input", "modulated", "residual"]

TINY = 1e-30


def entering(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    """Returns the first tensor of a call, which is the latents in all denoisers of diffusers.

    Denoisers that take a list with one tensor a sample get them stacked, where they have one shape.
    """
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor) and value.is_floating_point() and value.ndim > 1:
            return value
        if isinstance(value, (list, tuple)) and value and all(isinstance(v, Tensor) for v in value):
            same = all(v.shape == value[0].shape for v in value)
            return torch.stack(list(value)) if same else value[0][None]
    return None


def relative_change(new: Tensor, old: Tensor) -> Tensor:
    """Returns mean |new - old| over mean |old|, of each sample, with shape (B,). Does not sync."""
    new, old = new.flatten(1).float(), old.flatten(1).float()
    return (new - old).abs().mean(1) / old.abs().mean(1).clamp_min(TINY)


def worst(values: Tensor, groups: Groups) -> float:
    """Returns the largest value of a batch: the one number a decision reads from the device.

    The sample that changes most decides for its batch, and for those of all ranks that run the denoiser
    together: quality before speed. Not-a-number counts as infinite, so that a broken run is computed and
    not forecast.

    Arguments:
        values: With any shape.
        groups: `step.groups`.
    """
    return float(highest(values.max().float().nan_to_num(nan=float("inf")), groups))
