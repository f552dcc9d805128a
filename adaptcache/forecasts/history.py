"""The tensors a forecast is made of: the last computed outputs, what entered there, the first latents."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from ..hooks import SchedulerStep
from .base import Known, Weights, weighted_sum


@dataclass
class StreamHistory:
    """What is kept of one stream of outputs; lists are newest first."""

    x0: Tensor | None
    past: list[Tensor] = field(default_factory=list)
    past_x: list[Tensor] = field(default_factory=list)
    past_signal: list[Tensor | None] = field(default_factory=list)
    past_c: list[Tensor] = field(default_factory=list)


class History:
    """Keeps the last `depth` outputs of a run and what entered first, for each stream.

    At the site `step` a stream is the latents of one scheduler and view; elsewhere a branch, a layer, ...

    Arguments:
        depth: How many outputs are kept.
        latents: Whether what entered at those steps is kept too.
    """

    def __init__(self, depth: int, latents: bool = False) -> None:
        self.depth, self.latents = depth, latents
        self.streams: dict[Hashable, StreamHistory] = {}

    def keep(
        self, key: Hashable, x: Tensor | None, output: Tensor, signal: Tensor | None = None, cond: Tensor | None = None
    ) -> None:
        """Notes a computed step; without what entered, or what guidance began with, where no forecast needs it."""
        if key not in self.streams:
            self.streams[key] = StreamHistory(None if x is None else x.clone())
        stream = self.streams[key]
        # Cloned: guiders work in place, and CUDA graphs reuse the memory of their outputs.
        stream.past.insert(0, output.clone())
        stream.past_signal.insert(0, signal)
        if self.latents and x is not None:
            stream.past_x.insert(0, x.clone())
        if cond is not None:
            stream.past_c.insert(0, cond.clone())
        for values in (stream.past, stream.past_x, stream.past_signal, stream.past_c):
            del values[self.depth :]

    def drop(self, key: Hashable) -> None:
        """Forgets a stream, as its shapes have changed."""
        self.streams.pop(key, None)

    def known(self, key: Hashable, x: Tensor | None, signal: Tensor | None = None) -> Known:
        """Returns what a forecast can be made of; the last output stands for what entered if that is None."""
        stream = self.streams[key]
        last = stream.past[0]
        x0 = last if stream.x0 is None else stream.x0
        entered = last if x is None else x
        return Known(stream.past, entered, x0, stream.past_x, signal, stream.past_signal, stream.past_c)

    def record(self, key: Hashable, step: SchedulerStep, signal: Tensor | None = None) -> None:
        """Notes what there is to keep of a step."""
        if step.computed:
            self.keep(key, step.x, step.u, signal)

    def features(self, key: Hashable, x: Tensor, names: Sequence[str]) -> list[Tensor]:
        """Returns the outputs, newest first, then what is named as in `Matched`; each with shape (B, *)."""
        known = self.known(key, x)
        named = {"x": [known.x], "x0": [known.x0], "past_x": known.past_x, "past_c": known.past_c}
        return [*known.past, *(value for name in names for value in named[name])]

    def combine(self, weights: Weights, key: Hashable, x: Tensor) -> Tensor:
        """Returns the weighted sum at a step that is entered with `x`, with shape (B, *)."""
        return weighted_sum(weights, self.known(key, x))
