"""DiCache's decision (Bu et al., 2025), https://arxiv.org/abs/2508.17356: accumulated change of a cheap probe."""

from typing import ClassVar, Literal

from torch import Tensor

from ..step import Step, relative_change
from .threshold import Threshold, ThresholdState


class Drift(Threshold):
    """Adds up the relative L1 change of the signal from step to step; computes where the sum is due.

    On the site `blocks` after one block this is DiCache's decision: the block's output is the probe, and
    the run goes on from it, so it is not wasted. With the forecast `gamma` it is DiCache.
    """

    accumulates: ClassVar[bool] = True

    type: Literal["drift"] = "drift"

    def score(self, state: ThresholdState, step: Step, x: Tensor, before: Tensor) -> Tensor:
        return relative_change(x, before)
