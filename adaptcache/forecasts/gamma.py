"""DiCache (Bu et al., 2025), https://arxiv.org/abs/2508.17356: how far to extrapolate, by a cheap probe."""

from typing import ClassVar, Literal

from pydantic import NonNegativeFloat
from torch import Tensor

from ..step import TINY, Signal, Step
from .base import Forecast, Known, Weights, weighted_sum


class Gamma(Forecast):
    """Extrapolates linearly by the ratio gamma = |p - p_2| / |p_1 - p_2| that the probe p shows.

    p_1 and p_2 are the probe at the last two computed steps; gamma is clipped and taken sample by sample,
    and never read back from the device. It is *not* linear in the history with known weights: they depend
    on the input. Exact on lines, within the clip, where the probe moves in proportion to the output.
    """

    depth: ClassVar[int] = 2
    signal: ClassVar[Signal] = "input"

    type: Literal["gamma"] = "gamma"
    least: NonNegativeFloat = 1.0  # the smallest gamma; 1 is reuse
    most: NonNegativeFloat = 1.5  # the largest gamma

    def weights(self, step: Step) -> Weights:
        return Weights((1.0,))  # reuse, while there is one output only

    def combine(self, known: Known, step: Step) -> Tensor:
        probes = [known.signal, *known.past_signal]
        if len(known.past) < 2 or any(probe is None for probe in probes[:3]):
            return weighted_sum(self.weights(step), known)
        here, last, before = (probe.flatten(1).float() for probe in probes[:3] if probe is not None)
        gone, whole = (here - before).abs().mean(1), (last - before).abs().mean(1)
        gamma = (gone / whole.clamp_min(TINY)).clamp(self.least, self.most)
        old, new = known.past[1].float(), known.past[0].float()
        if len(gamma) != len(old):  # a stream that is packed without a batch, of another length than the probe
            gamma = gamma.mean()[None]
        return (old + gamma.view(-1, *[1] * (old.ndim - 1)) * (new - old)).to(known.past[0].dtype)
