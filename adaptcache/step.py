"""Where a run is: which step of which grid, told by the scheduler and never by the denoiser.

The timestep a denoiser is given will not do: Flux and Qwen-Image cast it to the latents' dtype, and in
bfloat16 neighbouring steps collide. The scheduler's own list is exact.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from .distributed import Groups
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from .distributed import Groups, highest


@dataclass(frozen=True)
class Step:
    """One step of a run.

    Arguments:
        index: The number of the step in this run, from 0.
        times: The times of all steps of this run, falling, with shape (N,); 1 is pure noise.
        past: The numbers of the steps computed so far, newest first.
        gear: Which plan of the schedule is followed.
        track: Which latents: 0, and 1 where a pipeline has a second scheduler (audio next to video).
        x: What enters the site, or what the policy reads there instead (`Policy.signal`); None where
            nobody reads it. With shape (B, *).
        groups: The process groups that run the denoiser together, and have to decide alike.
    """

    index: int
    times: tuple[float, ...]
    past: tuple[int, ...] = ()
    gear: int = 0
    track: int = 0
    x: Tensor | None = field(default=None, compare=False, repr=False)
    groups: Groups = field(default=(), compare=False, repr=False)

    @property
    def t(self) -> float:
        """The time of this step."""
        return self.times[self.index]


def times_of(scheduler: Any) -> tuple[float, ...]:
    """Returns the times in [0, 1] of a scheduler's timesteps, falling. Syncs the device once.

    Timesteps that count training steps are divided by their number, timesteps that already lie in
    [0, 1] are kept, and anything else (EDM's log-sigmas) is replaced by sigma / (1 + sigma).
    Rising lists (Mochi) are mirrored. Times that come several times in turn (Heun calls the denoiser
    twice at each, PNDM at one) are spread towards the time before, as plans tell steps apart by time.
    """
    steps = [float(t) for t in scheduler.timesteps.tolist()]
    if not steps:
        return ()
    if min(steps) < 0:
        sigmas = [float(s) for s in scheduler.sigmas.tolist()[: len(steps)]]
        steps = [s / (1 + s) for s in sigmas]
    elif max(steps) > 1:
        scale = float(scheduler.config.get("num_train_timesteps", 1000))
        steps = [t / scale for t in steps]
    if steps[0] < steps[-1]:
        steps = [1 - t for t in steps]
    return spread(steps)


def spread(times: list[float]) -> tuple[float, ...]:
    """Returns times that fall: the k-th but last of equal ones moves k parts towards the time before."""
    result, before = [], None
    for time, equal in itertools.groupby(times):
        count = len(list(equal))
        gap = (before if before is not None else time) - time
        result += [time + gap * (count - 1 - k) / count for k in range(count)]
        before = time
    return tuple(result)


def first_step(scheduler: Any, timestep: Any) -> int:
    """Returns the number of the timestep a run starts at: above 0 for image-to-image.

    Arguments:
        scheduler: The scheduler, after `set_timesteps`.
        timestep: What the first `step` was given, for schedulers that do not keep a begin index.
    """
    begin = getattr(scheduler, "begin_index", None)
    if begin is not None:
        return int(begin)
    given = float(timestep.flatten()[0]) if hasattr(timestep, "flatten") else float(timestep)
    matches = [i for i, t in enumerate(scheduler.timesteps.tolist()) if abs(t - given) < 1e-4]
    return matches[0] if matches else 0


# What dynamic policies look at: the tensor that enters a site, and how far it is from another.

# "none": nothing, so nothing is paid; "input": what enters the site; "modulated": that, after the first
# block's normalisation and modulation by the time (TeaCache); "residual": what the blocks before the
# site have added (FBCache). The site `step` knows the first two only.
Signal = Literal["none", "input", "modulated", "residual"]

TINY = 1e-30
NEAR = 1e-4  # times this close are the same: schedules keep 8 digits, schedulers compute in float32


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
