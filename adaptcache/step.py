"""Where a run is: which step of which grid; and what dynamic policies read there."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from .distributed import Groups, highest


@dataclass(frozen=True)
class Step:
    """One step of a run."""

    index: int  # the number of the step in this run, from 0
    times: tuple[float, ...]  # the times of all steps of this run, falling, with shape (N,); 1 is pure noise
    past: tuple[int, ...] = ()  # the numbers of the steps computed so far, newest first
    gear: int = 0  # which plan of the schedule is followed
    track: int = 0  # which latents: 0, and 1 where a pipeline has a second scheduler (audio next to video)
    instance: int = 0  # which block or layer of the site, where each decides for itself
    # what enters the site, or what the policy reads there instead (`Policy.signal`); None where no policy reads it.
    # With shape (B, *).
    x: Tensor | None = field(default=None, compare=False, repr=False)
    # the process groups that run the denoiser together, and have to decide alike
    groups: Groups = field(default=(), compare=False, repr=False)

    @property
    def t(self) -> float:
        """The time of this step."""
        return self.times[self.index]


NEAR = 1e-4  # times this close are the same: schedules keep 8 digits, schedulers compute in float32

# "none": nothing, so nothing is paid; "input": what enters the site; "modulated": that, after the first
# block's normalisation and modulation by the time (TeaCache); "residual": what the blocks before the
# site have added (FBCache). The site `step` knows the first two only.
Signal = Literal["none", "input", "modulated", "residual"]

TINY = 1e-30


def nearest_entries(length: int, steps: int) -> list[int]:
    """Returns which entry of a list of some length each of N steps takes: the ends stay ends."""
    if steps == 1:
        return [length - 1]
    return [round(i * (length - 1) / (steps - 1)) for i in range(steps)]


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


def relative_distance(new: Tensor, old: Tensor) -> Tensor:
    """Returns |new - old| over |old|, of each sample, with shape (B,). Does not sync."""
    new, old = new.flatten(1).float(), old.flatten(1).float()
    distance: Tensor = (new - old).norm(dim=1) / old.norm(dim=1).clamp_min(TINY)
    return distance


def mean_change(changes: Iterable[Tensor]) -> Tensor:
    """Returns the mean over blocks or layers of how much they changed, of each sample, with shape (B,).

    Where some are given another number of samples, each counts with the one that changed most.
    """
    rows = list(changes)
    if any(row.shape != rows[0].shape for row in rows):
        rows = [row.max()[None] for row in rows]
    return torch.stack(rows).mean(0)


def worst(values: Tensor, groups: Groups) -> float:
    """Returns the largest value of a batch: the one number a decision reads from the device.

    The sample that changes most decides for its batch, and for those of all ranks that run the denoiser
    together: quality before speed. Not-a-number counts as infinite, so that a broken run is computed and
    not forecast.
    """
    return float(highest(values.max().float().nan_to_num(nan=float("inf")), groups))
