"""Reuse of what the denoiser adds to its input.

References:
    | EasyCache (Zhou et al., 2025), https://arxiv.org/abs/2507.02860
"""

from __future__ import annotations

from typing import Literal

from ..step import Step
from .base import Forecast, Weights

__all__ = ["Offset"]


class Offset(Forecast):
    """Adds to this step's latents the difference of output and latents at the last computed step.

    Exact where output and latents change alike. On the site `blocks` the residual is reused anyway, and
    plain reuse (`extrapolate` of order 0) is what this is here.
    """

    type: Literal["offset"] = "offset"

    @property
    def depth(self) -> int:
        return 1

    @property
    def keeps_latents(self) -> bool:
        return True

    def weights(self, step: Step) -> Weights:
        return Weights((1.0,), x=1.0, past_x=(-1.0,))
