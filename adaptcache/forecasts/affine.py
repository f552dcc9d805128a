"""Block Caching (Wimbauer et al., 2023), https://arxiv.org/abs/2312.03209: the last output, scaled and shifted."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import FailFast, Field, FiniteFloat, model_validator
from torch import Tensor

from ..limits import STEPS
from ..profile import Profile
from ..step import TINY, Step, nearest_entries
from .base import Forecast, Known, Weights

Row = Annotated[tuple[FiniteFloat, ...], Field(max_length=8192), FailFast()]


class Affine(Forecast):
    """Gives scale * output + shift, by block, step and channel.

    With one number a row this is a scale for all channels: the correction that Error-Optimized Cache fits
    (https://arxiv.org/abs/2501.19243). Exact where outputs are an affine function of earlier ones.
    """

    type: Literal["affine"] = "affine"
    # by block or layer (one serves all) and step of the grid: nothing for reuse, one scale for all C channels, or C
    # scales and then C shifts; runs of another length take the nearest rows
    rows: Annotated[tuple[Annotated[tuple[Row, ...], Field(max_length=STEPS)], ...], Field(max_length=4096)]

    @model_validator(mode="after")
    def _rows_agree(self) -> Self:
        if any(len(row) > 1 and len(row) % 2 for rows in self.rows for row in rows):
            raise ValueError("a row has one scale, or as many shifts as scales")
        return self

    def row(self, step: Step) -> Row:
        """Returns the row of a step and block."""
        rows = self.rows[step.instance if len(self.rows) > 1 else 0] if self.rows else ()
        return rows[nearest_entries(len(rows), len(step.times))[step.index]] if rows else ()

    def weights(self, step: Step) -> Weights:
        row = self.row(step)
        return Weights((row[0] if len(row) == 1 else 1.0,))

    def combine(self, known: Known, step: Step) -> Tensor:
        row, last = self.row(step), known.past[0]
        if len(row) < 2:
            return super().combine(known, step)
        axis = -1 if last.ndim == 3 else 1
        if last.shape[axis] * 2 != len(row):
            raise ValueError(f"scales and shifts are of {len(row) // 2} channels, the output has {last.shape[axis]}")
        shape = [-1 if at == axis % last.ndim else 1 for at in range(last.ndim)]
        scale, shift = (part.view(shape) for part in torch.tensor(row, device=last.device).chunk(2))
        return (last.float() * scale + shift).to(last.dtype)

    @classmethod
    def fit(cls, profile: Profile, plan: Sequence[int], **params: Any) -> Self:
        """Returns one scale for each skipped step, by least squares on the guided outputs."""
        gram, rows = profile.kernel, list[Row]()
        for i in range(profile.steps):
            last = max((c for c in plan if c <= i), default=0)
            rows.append(() if last == i else (float(gram[i, last] / max(gram[last, last], TINY)),))
        return cls(rows=(tuple(rows),), **params)
