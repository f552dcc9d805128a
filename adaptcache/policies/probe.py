"""First Block Cache (https://github.com/chengzeyi/ParaAttention) and DBCache (https://github.com/vipshop/cache-dit)"""

from typing import ClassVar, Literal

from torch import Tensor

from ..step import Signal, Step, relative_change
from .threshold import Threshold, ThresholdState


class Probe(Threshold):
    """Computes where the signal differs too much, in relative L1, from that of the last computed step.

    On the site `blocks` with its first block always computed, and that block's residual as the signal,
    this is First Block Cache; with more blocks, DBCache's decision. No error can creep in unseen, as
    the comparison is with what is reused and not with the step before.
    """

    inclusive: ClassVar[bool] = True  # diffusers computes above the threshold only

    type: Literal["probe"] = "probe"
    on: Signal = "residual"

    def score(self, state: ThresholdState, step: Step, x: Tensor, before: Tensor) -> Tensor:
        assert state.anchor is not None
        return relative_change(x, state.anchor)
