"""Which step of its grid a scheduler is at, read from the timesteps that it is given.

The timestep that a denoiser is given will not do: Flux and Qwen-Image cast it to the latents' dtype, and in
bfloat16 neighbouring steps collide. The scheduler's own list is exact.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

__all__ = ["Position", "times_of"]

EQUAL = 1e-6  # times this close are one time: schedulers compute them in float32
CLOSE = 1e-4  # timesteps this close, relative to the largest, are one


def times_of(scheduler: Any) -> tuple[float, ...]:
    """Returns the times in [0, 1] of a scheduler's timesteps, falling. Syncs the device once.

    Timesteps that count training steps are divided by their number, timesteps that already lie in
    [0, 1] are kept, and anything else (EDM's log-sigmas, sigmas above 1 of Cosmos) is replaced by
    sigma / (1 + sigma). Rising lists (Mochi) are mirrored. Times that come several times in turn (Heun calls
    the denoiser twice at each, PNDM at one) are spread towards the time before, as plans tell steps apart by
    time.
    """
    steps = [float(t) for t in scheduler.timesteps.tolist()]
    if len(steps) > 1 and steps[-1] == 0 and len(set(steps)) - 1 == getattr(scheduler, "num_inference_steps", None):
        steps.pop()  # a grid that names its end too (SCM)
    if not steps:
        return ()
    scale = float(scheduler.config.get("num_train_timesteps") or 1000)
    sigmas = getattr(scheduler, "sigmas", None)
    counted = all(0 <= t <= scale for t in steps)
    if not counted or (_are_sigmas(steps, sigmas) and max(steps) > 1):
        levels = [float(s) for s in sigmas.tolist()[: len(steps)]] if sigmas is not None else steps
        steps = [s / (1 + s) for s in levels]
    elif max(steps) > 1:
        steps = [t / scale for t in steps]
    if steps[0] < steps[-1]:
        steps = [1 - t for t in steps]
    return spread(steps)


def _are_sigmas(steps: list[float], sigmas: Any) -> bool:
    """Whether the timesteps are the noise levels themselves."""
    if sigmas is None or len(sigmas) < len(steps):
        return False
    return all(abs(t - float(s)) <= CLOSE * max(steps) for t, s in zip(steps, sigmas.tolist(), strict=False))


def spread(times: list[float]) -> tuple[float, ...]:
    """Returns times that fall: the k-th but last of equal ones moves k parts towards the time before."""
    groups: list[list[float]] = []
    for time in times:
        if groups and abs(groups[-1][0] - time) <= EQUAL:
            groups[-1].append(time)
        else:
            groups.append([time])
    result, before = list[float](), None
    for equal in groups:
        time, count = min(equal), len(equal)
        gap = (before if before is not None else time) - time
        result += [time + gap * (count - 1 - k) / count for k in range(count)]
        before = time
    return tuple(result)


class Position:
    """Follows the timesteps that one scheduler is given.

    Arguments:
        scheduler: The scheduler, after `set_timesteps`.
        timestep: What its first step is given: above the first of the grid for image-to-image.
    """

    def __init__(self, scheduler: Any, timestep: Any) -> None:
        self.scheduler = scheduler
        begin = getattr(scheduler, "begin_index", None)
        self.begin = int(begin) if begin is not None else self._find(timestep)

    def _find(self, timestep: Any) -> int:
        """Returns the first place in the grid that has a timestep."""
        grid = self.scheduler.timesteps
        if (known := offset_in(grid, timestep)) is not None:
            return known
        value, steps = number_of(timestep), grid.tolist()
        largest = max(map(abs, steps), default=1.0)
        return next((i for i, t in enumerate(steps) if abs(t - value) <= CLOSE * largest), 0)

    def matches(self, timestep: Any, index: int) -> bool:
        """Whether a timestep is that of step `index` of the run. Syncs only where it is no part of the grid."""
        grid, at = self.scheduler.timesteps, self.begin + index
        if at >= len(grid):
            return False
        if (known := offset_in(grid, timestep)) is not None and known == at:
            return True
        scale = max(abs(float(grid.max())), 1e-12) if grid.device.type == "cpu" else 1000.0
        return abs(number_of(timestep) - float(grid[at])) <= CLOSE * scale

    def ratio(self) -> float:
        """Returns the second timestep over the first; 0 where they are the same or there is none."""
        grid = self.scheduler.timesteps[self.begin : self.begin + 2].tolist()
        return grid[1] / grid[0] if len(grid) == 2 and grid[0] and grid[0] != grid[1] else 0.0


def offset_in(grid: Any, timestep: Any) -> int | None:
    """Returns the place of a timestep that is an entry of the grid's own memory; reads nothing from the device."""
    if not (isinstance(grid, Tensor) and isinstance(timestep, Tensor)) or grid.is_meta or timestep.is_meta:
        return None
    same = timestep.untyped_storage().data_ptr() == grid.untyped_storage().data_ptr()
    if not same or timestep.dtype != grid.dtype or not grid.ndim or not grid.stride(0):
        return None
    return (timestep.storage_offset() - grid.storage_offset()) // grid.stride(0)


def number_of(timestep: Any) -> float:
    """Returns a timestep as a number: the first of a batch."""
    return float(timestep.flatten()[0]) if isinstance(timestep, Tensor) else float(timestep)
