"""A finer grid under a pipeline's own: the reference can be closer to the exact solution than N steps."""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch

__all__ = ["refined"]

SUPPORTED = "FlowMatchEulerDiscreteScheduler"


def refined(scheduler: Any, factor: int) -> Any:
    """Returns a scheduler that takes `factor` steps for each step it is asked for.

    The wanted steps stay on the grid: each is cut into parts of equal length in sigma.

    Raises:
        ValueError: The scheduler's grid is not its list of sigmas, or `factor` is below 1.
    """
    if factor < 1:
        raise ValueError(f"a teacher needs at least as many steps as the schedule, got a factor of {factor}")
    if factor == 1:
        return scheduler
    base = type(scheduler)
    if base.__name__ != SUPPORTED or scheduler.config.stochastic_sampling:
        raise ValueError(f"a finer teacher needs a deterministic {SUPPORTED}, this is a {base.__name__}")

    class Refined(base):  # type: ignore[misc, valid-type]
        @functools.wraps(base.set_timesteps)  # pipelines ask for the names of its arguments
        def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
            super().set_timesteps(*args, **kwargs)
            self.sigmas: torch.Tensor
            self.timesteps: torch.Tensor
            left, right = self.sigmas[:-1, None], self.sigmas[1:, None]
            share = torch.arange(factor, device=self.sigmas.device) / factor
            inner = (left + (right - left) * share).flatten()
            self.sigmas = torch.cat([inner, self.sigmas[-1:]])
            self.timesteps = (inner * self.config.num_train_timesteps).to(self.timesteps.device)

    Refined.__name__ = base.__name__
    finer = copy.deepcopy(scheduler)
    finer.__class__ = Refined
    return finer
