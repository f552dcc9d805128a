"""The tensors a forecast is made of: the last computed outputs, what entered there, the first latents."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from ..hooks import SchedulerStep
from .base import Known, Weights, weighted_sum

__all__ = ["History"]


@dataclass
class Line:
    """What is kept of one stream of outputs; lists are newest first."""

    x0: Tensor | None = None
    past: list[Tensor] = field(default_factory=list)
    past_x: list[Tensor] = field(default_factory=list)
    past_signal: list[Tensor | None] = field(default_factory=list)


class History:
    """Keeps the last `depth` outputs and the first latents of a run, for each track (or branch).

    Arguments:
        depth: How many outputs are kept.
        latents: Whether what entered at those steps is kept too.
    """

    def __init__(self, depth: int, latents: bool = False) -> None:
        self.depth, self.latents = depth, latents
        self.lines: dict[Hashable, Line] = {}

    def enter(self, key: Hashable, x: Tensor) -> None:
        """Notes what entered at the first step."""
        self.lines[key] = Line(x0=x.clone())

    def keep(self, key: Hashable, x: Tensor | None, output: Tensor, signal: Tensor | None = None) -> None:
        """Notes a computed step; without what entered, for sites whose forecasts do not need it."""
        line = self.lines.setdefault(key, Line()) if x is None else self.lines[key]
        # Cloned: guiders work in place, and CUDA graphs reuse the memory of their outputs.
        line.past.insert(0, output.clone())
        line.past_signal.insert(0, signal)
        if self.latents and x is not None:
            line.past_x.insert(0, x.clone())
        for values in (line.past, line.past_x, line.past_signal):
            del values[self.depth :]

    def drop(self, key: Hashable) -> None:
        """Forgets a stream: its shapes are others now."""
        self.lines.pop(key, None)

    def known(self, key: Hashable, x: Tensor | None, signal: Tensor | None = None) -> Known:
        """Returns what a forecast can be made of; the last output stands for what entered if that is None."""
        line = self.lines[key]
        last = line.past[0]
        x0 = last if line.x0 is None else line.x0
        return Known(line.past, last if x is None else x, x0, line.past_x, signal, line.past_signal)

    def record(self, key: Hashable, step: SchedulerStep, signal: Tensor | None = None) -> None:
        """Notes what there is to keep of a step."""
        if step.step.index == 0 and key not in self.lines:
            self.enter(key, step.x)
        if step.computed:
            self.keep(key, step.x, step.u, signal)

    def features(self, key: Hashable, x: Tensor, names: Sequence[str]) -> list[Tensor]:
        """Returns the outputs, newest first, then what is named as in `Matched`; each with shape (B, *)."""
        known = self.known(key, x)
        named = {"x": [known.x], "x0": [known.x0], "past_x": known.past_x}
        return [*known.past, *(value for name in names for value in named[name])]

    def combine(self, weights: Weights, key: Hashable, x: Tensor) -> Tensor:
        """Returns the weighted sum at a step that is entered with `x`, with shape (B, *)."""
        return weighted_sum(weights, self.known(key, x))
