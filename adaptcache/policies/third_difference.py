"""AdaptiveDiffusion (Ye et al., 2024), https://arxiv.org/abs/2410.09873: third difference of the latents."""

from typing import ClassVar, Literal

import torch
from pydantic import NonNegativeFloat, NonNegativeInt
from torch import Tensor

from ..step import TINY, Step
from .threshold import Threshold, ThresholdState
from .transform_rate import size


class ThirdDifference(Threshold):
    """Computes where the lengths of the last three moves of the latents do not lie on a line.

    With d the mean absolute change of the latents, |(d + d two before) / 2 - d before| / d before is
    compared with the threshold. Four latents are needed, so the first three steps are computed.
    """

    inclusive: ClassVar[bool] = True

    type: Literal["third-difference"] = "third-difference"
    threshold: NonNegativeFloat = 0.01
    max_skip: NonNegativeInt | None = 4

    def score(self, state: ThresholdState, step: Step, x: Tensor, before: Tensor) -> Tensor:
        moves = [size(x - before), *state.notes][:3]
        state.notes[:] = moves
        if len(moves) < 3:
            return torch.full_like(moves[0], float("inf"))
        return ((moves[0] + moves[2]) / 2 - moves[1]).abs() / moves[1].clamp_min(TINY)
