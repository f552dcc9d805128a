"""Every n-th step, after a warm-up.

References:
    | DeepCache (Ma et al., 2024), https://arxiv.org/abs/2312.00858
    | FORA (Selvaraju et al., 2024), https://arxiv.org/abs/2407.01425
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ..clock import Step
from ..limits import STEPS
from .base import Policy

__all__ = ["Uniform"]


class Uniform(Policy):
    """Computes every `interval`-th step.

    Arguments:
        interval: Steps from one computed step to the next; 1 computes all.
        warm_up: Steps at the start that are all computed.
        cool_down: Steps at the end that are all computed.
    """

    type: Literal["uniform"] = "uniform"
    interval: Annotated[int, Field(ge=1, le=STEPS)] = 2
    warm_up: Annotated[int, Field(ge=1, le=STEPS)] = 1
    cool_down: Annotated[int, Field(ge=0, le=STEPS)] = 0

    def compute(self, state: None, step: Step) -> bool:
        if step.index < self.warm_up or step.index >= len(step.times) - self.cool_down:
            return True
        return (step.index - self.warm_up + 1) % self.interval == 0
