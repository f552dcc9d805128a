"""Signals of a run: what is looked at after a computed step, and what it says about how the run will end.

A signal is the decimal logarithm of the energy of a linear combination of the outputs computed so far, over
the energy of the newest. The first one at each step is the *innovation*: how far a forecast of the output
from the earlier ones would have been off. All is computed on the device, for each sample of a batch.
"""

from collections.abc import Sequence
from typing import Annotated, Self

import numpy as np
import torch
from pydantic import Field, FiniteFloat, model_validator
from torch import Tensor

from ..fitting.kernel import Array
from ..fitting.signals import LEAST, fit_quality
from ..limits import FrozenModel
from ..step import TINY

MOST = 64  # signals that a prediction is made from
SPREAD = 3.0  # standard deviations of the innovation on each side of its band
MARGIN = 0.1  # beyond what was seen, in decades
FEW, FEW_MARGIN = 8, 0.5  # of fewer prompts than this more is unseen

Row = tuple[float, ...]
Numbers = Annotated[tuple[FiniteFloat, ...], Field(max_length=MOST)]


class QualityPredictor(FrozenModel):
    """Predicts how a run ends, in decibels: a regression of all signals so far, as plain numbers.

    With z = (clip(signals, low, high) - centre) / scale it is a constant, plus `linear` times z, plus
    `square` times the products of its entries, plus radial basis functions around prompts it was fitted on.
    """

    low: Numbers  # the smallest signals of the F there are: what is beyond is unknown, so it is clipped
    high: Numbers  # the largest ones
    centre: Numbers  # their means
    # their standard deviations
    scale: Annotated[tuple[Annotated[FiniteFloat, Field(gt=0)], ...], Field(max_length=MOST)]
    constant: FiniteFloat  # what is predicted where z is zero, without radial basis functions
    linear: Numbers  # the weights of z, F of them
    # the weights of z_i z_j with i <= j, row by row; empty for a linear prediction
    square: Annotated[tuple[FiniteFloat, ...], Field(max_length=MOST * (MOST + 1) // 2)] = ()
    # the centres of the radial basis functions exp(-width |z - centre|^2), with F entries each
    around: Annotated[tuple[Numbers, ...], Field(max_length=1024)] = ()
    heights: Annotated[tuple[FiniteFloat, ...], Field(max_length=1024)] = ()  # their heights
    width: Annotated[FiniteFloat, Field(ge=0)] = 0.0  # their width, as above
    r2: FiniteFloat  # the share of the variance explained on prompts that it was not fitted to

    @model_validator(mode="after")
    def _lengths_agree(self) -> Self:
        count = len(self.linear)
        rows = (self.low, self.high, self.centre, self.scale, *self.around)
        if any(len(row) != count for row in rows) or len(self.square) not in (0, count * (count + 1) // 2):
            raise ValueError(f"the numbers of a prediction from {count} signals do not agree in length")
        if len(self.around) != len(self.heights):
            raise ValueError(f"{len(self.around)} radial basis functions have {len(self.heights)} heights")
        return self

    def predict(self, signals: Tensor) -> Tensor:
        """Returns decibels for each sample, with shape (B,), from signals with shape (B, F)."""

        def put(values: object) -> Tensor:
            return torch.tensor(values, dtype=torch.float32, device=signals.device)

        z = (signals.clamp(put(self.low), put(self.high)) - put(self.centre)) / put(self.scale)
        value = self.constant + (z * put(self.linear)).sum(1)
        if self.square:
            i, j = torch.triu_indices(z.shape[1], z.shape[1], device=z.device)
            value = value + (z[:, i] * z[:, j] * put(self.square)).sum(1)
        if self.heights:
            apart = (z[:, None] - put(self.around)).square().sum(2)
            value = value + ((-self.width * apart).exp() * put(self.heights)).sum(1)
        return value


class SignalSpec(FrozenModel):
    """What to look at after one computed step of a gear."""

    # one row a signal: the weights of the outputs computed so far, newest first
    rows: Annotated[
        tuple[Annotated[tuple[FiniteFloat, ...], Field(min_length=1, max_length=8)], ...],
        Field(min_length=1, max_length=MOST),
    ]
    # between which values the innovation of the calibration prompts lies, with some margin
    band: tuple[FiniteFloat, FiniteFloat]
    # how a run in this gear ends, from the signals of this step and those before
    predictor: QualityPredictor | None = Field(None, alias="guess")

    @property
    def depth(self) -> int:
        """How many outputs are needed."""
        return max(map(len, self.rows))

    @property
    def middle(self) -> float:
        """The innovation that the calibration prompts had on average."""
        return sum(self.band) / 2

    @property
    def deviation(self) -> float:
        """The standard deviation of their innovation, from its band."""
        return max(self.band[1] - self.band[0], TINY) / (2 * SPREAD)


def compute_signals(rows: Sequence[Sequence[float]], outputs: Sequence[Tensor]) -> Tensor:
    """Returns the signals of each sample, with shape (B, len(rows)), from outputs (B, *), newest first; no sync."""
    flat = [output.flatten(1).float() for output in outputs]
    energy = flat[0].square().sum(1).clamp_min(torch.finfo(torch.float32).tiny)
    found = []
    for row in rows:
        total = sum((value * weight for value, weight in zip(flat, row, strict=False)), torch.zeros(()))
        found.append((total.square().sum(1) / energy).clamp_min(LEAST).log10())
    return torch.stack(found, 1)


def fit_signal_specs(
    plans: Sequence[Sequence[int]],
    rows: Sequence[Sequence[Sequence[Row]]],
    seen: Sequence[Sequence[Array]],
    ends: Array,
) -> tuple[tuple[tuple[SignalSpec, ...], ...], dict[tuple[int, int], Array]]:
    """Fits bands, and predictors for the steps after which more than one gear is open. Needs scikit-learn.

    Arguments:
        plans: The computed steps of the G gears.
        rows: What is looked at, by gear and computed step after the first.
        seen: What was seen there, each with shape (P, F).
        ends: What the runs ended with, in decibels, with shape (G, P).

    Returns:
        What to look at, and by gear and number of the step what is predicted for each prompt from the others.
    """
    specs, predicted = [], {}
    for g in range(len(plans)):
        own = []
        for number, signals in enumerate(seen[g]):
            predictor = None
            if _is_open(plans, g, number + 2):
                fit = fit_quality(np.concatenate(seen[g][: number + 1], 1), ends[g])
                predictor, predicted[g, number] = QualityPredictor(**fit.numbers), fit.left_out
            band = fit_band(signals[:, 0])
            own.append(SignalSpec(rows=tuple(rows[g][number]), band=band, predictor=predictor))
        specs.append(tuple(own))
    return tuple(specs), predicted


def _is_open(plans: Sequence[Sequence[int]], gear: int, computed: int) -> bool:
    """Whether another gear computes the same first steps, and none that this one skipped."""
    return any(other[:computed] == plans[gear][:computed] for g, other in enumerate(plans) if g != gear)


def fit_band(innovations: Array) -> tuple[float, float]:
    """Returns between which values the innovation of other prompts of the kind lies, nearly always.

    In logarithms it is bell-shaped enough for this: the mean and three standard deviations to each side, and
    some margin beyond what was seen.
    """
    room, least = SPREAD * float(innovations.std()), MARGIN if len(innovations) >= FEW else FEW_MARGIN
    low = min(innovations.mean() - room, innovations.min() - least)
    high = max(innovations.mean() + room, innovations.max() + least)
    return float(low), float(high)
