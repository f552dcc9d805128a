"""FreqCa (2025), https://arxiv.org/abs/2510.08669: low frequencies are reused, high ones extrapolated."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from ..step import Step
from .base import Forecast, Known, Weights, weighted_sum
from .hermite import Hermite


class Frequency(Forecast):
    """Splits the outputs by a Fourier transform over positions: reuse below `cut`, Hermite above.

    Not one weight vector but two, one a band: the sum of both forecasts. Positions are all dimensions but
    batch and channels: (B, S, C) has one, in the order of the tokens; (B, C, H, W) and (B, C, F, H, W) have
    theirs. Exact on constants.
    """

    type: Literal["frequency"] = "frequency"
    cut: Annotated[float, Field(ge=0, le=1)] = 0.25  # the highest low frequency, as a fraction of the highest there is
    order: Annotated[int, Field(ge=0, le=5)] = 2  # the order of the Hermite series above it
    scale: Annotated[float, Field(gt=0, le=1)] = 0.5  # its damping

    def weights(self, step: Step) -> Weights:
        """Returns the weights of the high band."""
        return Hermite(order=self.order, scale=self.scale).weights(step)

    def combine(self, known: Known, step: Step) -> Tensor:
        last = known.past[0]
        # high(forecast) + low(last) = forecast + low(last - forecast): one transform each way.
        forecast = weighted_sum(self.weights(step), known).float()
        return (forecast + self.low_band(last.float() - forecast)).to(last.dtype)

    def low_band(self, value: Tensor) -> Tensor:
        """Returns the low band of a tensor with shape (B, S, C) or (B, C, *)."""
        axes = [1] if value.ndim == 3 else list(range(2, value.ndim))
        if not axes:
            return value
        spectrum = torch.fft.fftn(value, dim=axes)
        for axis in axes:
            frequencies = torch.fft.fftfreq(value.shape[axis], device=value.device).abs()
            keep = frequencies <= self.cut / 2 + 1e-9  # 1/2 is the highest
            spectrum = spectrum * keep.view([-1 if a == axis else 1 for a in range(value.ndim)])
        low: Tensor = torch.fft.ifftn(spectrum, dim=axes).real
        return low
