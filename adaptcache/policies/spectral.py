"""SeaCache (2026), https://arxiv.org/abs/2602.18993: change seen through the filter that fits the noise level."""

from typing import ClassVar, Literal

import torch
from pydantic import PositiveFloat
from torch import Tensor

from ..step import Step, relative_change
from .threshold import Threshold, ThresholdState

TINY = 1e-16


class Spectral(Threshold):
    """Adds up the relative L1 change of the filtered signal from step to step.

    The filter is Wiener's for images with spectrum 1 / |f|^power under noise of level t (flow matching: the
    signal has weight 1 - t), so change in what is still noise does not count. No calibration.
    """

    accumulates: ClassVar[bool] = True

    type: Literal["spectral"] = "spectral"
    power: PositiveFloat = 2.0  # fall of the spectrum: 2 for images, 3 for video
    # positions of the tokens (height, width) where the signal is a sequence; without it a sequence is filtered in the
    # order of its tokens
    grid: tuple[int, ...] | None = None

    def score(self, state: ThresholdState, step: Step, x: Tensor, before: Tensor) -> Tensor:
        last = state.notes[0] if state.notes else self._seen(before, step.times[step.index - 1])
        state.notes[:] = [self._seen(x, step.t)]
        return relative_change(state.notes[0], last)

    def _seen(self, x: Tensor, t: float) -> Tensor:
        """Returns the filtered signal, with shape (B, C, *)."""
        if x.ndim == 3:
            x = x.transpose(1, 2)
            if self.grid:
                x = x.unflatten(2, self.grid)
        return denoised(x.float(), t, self.power)


def denoised(x: Tensor, t: float, power: float) -> Tensor:
    """Returns what can be seen of a signal under noise of level t, where the clean spectrum falls with a power.

    A tensor has shape (B, C, *); positions are filtered, samples and channels are not.
    """
    axes, t = list(range(2, x.ndim)), min(max(t, 1e-6), 1 - 1e-6)  # at 1 nothing could be seen
    signal = 1 - t
    gain = torch.ones([1] * x.ndim, device=x.device)
    for axis in axes:
        frequencies = torch.fft.fftfreq(x.shape[axis], device=x.device).abs()
        clean = 1 / (frequencies**power + TINY)
        response = signal * clean / (signal**2 * clean + t**2 + TINY)
        gain = gain * response.view([-1 if a == axis else 1 for a in range(x.ndim)])
    gain = gain / gain.mean().clamp_min(TINY)  # so that distances compare across steps
    return torch.fft.ifftn(torch.fft.fftn(x, dim=axes) * gain, dim=axes).real if axes else x
