"""EasyCache (Zhou et al., 2025), https://arxiv.org/abs/2507.02860: the output's change, from the input's."""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..step import TINY, Step
from .threshold import Threshold, ThresholdState


class TransformRate(Threshold):
    """Adds up k mean|x - x before| / mean|u|, with u the last output and k the rate of change.

    k is mean|change of u| over mean|change of x| between the last two computed steps: no calibration. Until
    there are two, everything is computed.
    """

    accumulates: ClassVar[bool] = True

    type: Literal["transform-rate"] = "transform-rate"

    def score(self, state: ThresholdState, step: Step, x: Tensor, before: Tensor) -> Tensor:
        assert state.output is not None
        moved = size(x - before)
        if not state.notes:
            return torch.full_like(moved, float("inf"))
        return state.notes[0] * moved / size(state.output).clamp_min(TINY)

    def observe(self, state: ThresholdState, step: Step, output: Tensor) -> None:
        if step.x is not None and state.anchor is not None and state.output is not None:
            change = size(output - state.output)
            state.notes[:] = [change / size(step.x - state.anchor).clamp_min(TINY)]
        super().observe(state, step, output.clone())


def size(value: Tensor) -> Tensor:
    """Returns the mean absolute value of each sample, with shape (B,)."""
    return value.flatten(1).float().abs().mean(1)
