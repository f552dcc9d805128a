"""FasterCache (Lv et al., 2024), https://arxiv.org/abs/2410.19355: what guidance adds, bands scaled apart."""

from typing import Annotated, Literal

import torch
from pydantic import Field, FiniteFloat
from torch import Tensor

from ..step import Step
from .base import Forecast, Known, Weights

Factor = Annotated[float, Field(ge=0, le=2)]


class Bands(Forecast):
    """Reuses the last output, each band multiplied by a factor at every skipped step within its times.

    Two dimensions are transformed, height and width, and frequencies are low within a fifth of the shorter
    one around zero, as in `FasterCacheConfig` of diffusers. Outputs of tokens, with shape (B, S, C), have no
    such bands: there the low one's factor holds for all. Factors of 0 make no difference at all, which is
    guidance switched off. Linear in the last output, but not one weight where the factors differ.
    """

    type: Literal["bands"] = "bands"
    low: Factor = 1.1  # the factor of low frequencies
    high: Factor = 1.1  # the factor of high frequencies
    # the times between which it multiplies; outside it is 1
    low_window: tuple[FiniteFloat, FiniteFloat] = (0.099, 0.901)
    high_window: tuple[FiniteFloat, FiniteFloat] = (-0.001, 0.301)  # the same for high frequencies

    def weights(self, step: Step) -> Weights:
        """Returns the weight of the low band."""
        return Weights((self.growth(step, self.low, self.low_window),))

    def growth(self, step: Step, factor: float, window: tuple[float, float]) -> float:
        """Returns what a factor has become since the last computed step."""
        times = [step.times[i] for i in range(step.past[0] + 1, step.index + 1)]
        return float(factor ** sum(window[0] < t < window[1] for t in times))

    def combine(self, known: Known, step: Step) -> Tensor:
        last = known.past[0]
        value, (low,) = last.float(), self.weights(step).past
        high = self.growth(step, self.high, self.high_window)
        if low == high or value.ndim < 4:
            return (value * low).to(last.dtype)
        return (value * high + self.low_band(value) * (low - high)).to(last.dtype)

    def low_band(self, value: Tensor) -> Tensor:
        """Returns the low band of a tensor with shape (*, H, W)."""
        h, w = value.shape[-2:]
        rows, columns = torch.arange(h, device=value.device), torch.arange(w, device=value.device)
        far = (rows[:, None] - h // 2) ** 2 + (columns - w // 2) ** 2
        spectrum = torch.fft.fftshift(torch.fft.fft2(value), dim=(-2, -1))
        spectrum = spectrum * (far <= (min(h, w) // 5) ** 2)
        low: Tensor = torch.fft.ifft2(torch.fft.ifftshift(spectrum, dim=(-2, -1))).real
        return low
