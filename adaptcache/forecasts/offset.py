"""EasyCache (Zhou et al., 2025), https://arxiv.org/abs/2507.02860: reuse of what the denoiser adds to its input."""

from typing import ClassVar, Literal

from ..step import Step
from .base import Forecast, Weights


class Offset(Forecast):
    """Adds to this step's latents the difference of output and latents at the last computed step.

    Exact where output and latents change alike. On the site `blocks` the residual is reused anyway, and
    plain reuse (`extrapolate` of order 0) is what this is here.
    """

    keeps_latents: ClassVar[bool] = True

    type: Literal["offset"] = "offset"

    def weights(self, step: Step) -> Weights:
        return Weights((1.0,), x=1.0, past_x=(-1.0,))
