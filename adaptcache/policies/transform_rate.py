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
        return state.notes[0] * moved / each(size(state.output), moved).clamp_min(TINY)

    def observe(self, state: ThresholdState, step: Step, output: Tensor) -> None:
        if step.x is not None and state.anchor is not None and state.output is not None:
            moved = size(step.x - state.anchor)
            state.notes[:] = [each(size(output - state.output), moved) / moved.clamp_min(TINY)]
        super().observe(state, step, output.clone())


def each(outputs: Tensor, inputs: Tensor) -> Tensor:
    """Returns a number of each output for each input: guidance makes one output of the two halves of a batch."""
    return outputs.repeat(len(inputs) // len(outputs))


def size(value: Tensor) -> Tensor:
    """Returns the mean absolute value of each sample, with shape (B,)."""
    return value.flatten(1).float().abs().mean(1)
