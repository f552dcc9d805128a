"""The tensors a forecast is made of: the last computed outputs and the first latents."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .forecasts import Weights
from .gate import Update

__all__ = ["History"]


class History:
    """Keeps the last `depth` guided outputs and the first latents of a run, for each track."""

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self.past: dict[int, list[Tensor]] = {}  # by track, newest first
        self.x0: dict[int, Tensor] = {}

    def see(self, update: Update) -> None:
        """Notes what there is to keep of a step."""
        if update.step.index == 0:
            self.x0[update.track] = update.move.x.clone()
        if update.computed:
            past = self.past.setdefault(update.track, [])
            # Cloned: guiders work in place, and CUDA graphs reuse the memory of their outputs.
            past.insert(0, update.move.u.clone())
            del past[self.depth :]

    def features(self, update: Update, names: Sequence[str]) -> list[Tensor]:
        """Returns the outputs, newest first, then what is named: "x" and "x0"; each with shape (B, *)."""
        known = {"x": update.move.x, "x0": self.x0[update.track]}
        return [*self.past[update.track], *(known[name] for name in names)]

    def combined(self, weights: Weights, update: Update) -> Tensor:
        """Returns the forecast, summed in float32, in the dtype of the outputs, with shape (B, *)."""
        past, x, x0 = self.past[update.track], update.move.x, self.x0[update.track]
        terms = [*zip(weights.past, past, strict=False), (weights.x, x), (weights.x0, x0)]
        (first, tensor), *rest = [term for term in terms if term[0]] or [(0.0, past[0])]
        total = tensor.to(torch.float32, copy=True).mul_(first)
        for weight, tensor in rest:
            total.add_(tensor, alpha=weight)
        return total.to(past[0].dtype)
