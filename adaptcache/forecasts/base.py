"""The interface of a forecast: what to use instead of computing; and the history it is made of."""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from ..limits import FrozenModel
from ..profile import Profile
from ..step import Signal, Step


@dataclass(frozen=True)
class Weights:
    """A linear combination of what is known at a skipped step at no cost."""

    past: tuple[float, ...]  # of the last computed outputs, newest first
    x: float = 0.0  # of the latents before the step
    x0: float = 0.0  # of the latents before the first step
    past_x: tuple[float, ...] = ()  # of the latents before the steps of `past`
    past_c: tuple[float, ...] = ()  # of the outputs with the prompt at these steps, before guidance


@dataclass
class Known:
    """What a forecast is made of; all with shape (B, *)."""

    past: Sequence[Tensor]  # the last computed outputs, newest first
    x: Tensor  # what enters the site now: the latents, or the hidden states
    x0: Tensor  # what entered it at the first step
    past_x: Sequence[Tensor] = ()  # what entered it at the steps of `past`, for forecasts that keep it
    signal: Tensor | None = None  # of this step, for forecasts that read one
    past_signal: Sequence[Tensor | None] = ()  # of the steps of `past`
    past_c: Sequence[Tensor] = ()  # with the prompt at these steps, before guidance, for forecasts that keep it


def weighted_sum(weights: Weights, known: Known) -> Tensor:
    """Returns the forecast, summed in float32, in the dtype of the outputs, with shape (B, *)."""
    pairs = [*zip(weights.past, known.past, strict=False), (weights.x, known.x), (weights.x0, known.x0)]
    pairs += [*zip(weights.past_x, known.past_x, strict=False), *zip(weights.past_c, known.past_c, strict=False)]
    (first, tensor), *rest = [pair for pair in pairs if pair[0]] or [(0.0, known.past[0])]
    total = tensor.to(torch.float32, copy=True).mul_(first)
    for weight, tensor in rest:
        total.add_(tensor, alpha=weight)
    return total.to(known.past[0].dtype)


@dataclass
class StreamHistory:
    """What is kept of one stream of outputs; lists are newest first."""

    x0: Tensor | None
    past: list[Tensor] = field(default_factory=list)
    past_x: list[Tensor] = field(default_factory=list)
    past_signal: list[Tensor | None] = field(default_factory=list)
    past_c: list[Tensor] = field(default_factory=list)


@dataclass
class History:
    """Keeps the last outputs of a run and what entered first, for each stream.

    At the site `step` a stream is the latents of one scheduler and view; elsewhere a branch, a layer, ...
    """

    depth: int  # how many outputs are kept
    latents: bool = False  # whether what entered at those steps is kept too
    streams: dict[Hashable, StreamHistory] = field(default_factory=dict)

    def keep(
        self, key: Hashable, x: Tensor | None, output: Tensor, signal: Tensor | None = None, cond: Tensor | None = None
    ) -> None:
        """Notes a computed step; without what entered, or what guidance began with, where no forecast needs it."""
        if (stream := self.streams.get(key)) is None:
            stream = self.streams[key] = StreamHistory(None if x is None else x.clone())
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

    def features(self, key: Hashable, x: Tensor, names: Sequence[str]) -> list[Tensor]:
        """Returns the outputs, newest first, then what is named as in `Matched`; each with shape (B, *)."""
        known = self.known(key, x)
        named = {"x": [known.x], "x0": [known.x0], "past_x": known.past_x, "past_c": known.past_c}
        return [*known.past, *(value for name in names for value in named[name])]

    def combine(self, weights: Weights, key: Hashable, x: Tensor) -> Tensor:
        """Returns the weighted sum at a step that is entered with `x`, with shape (B, *)."""
        return weighted_sum(weights, self.known(key, x))


class Forecast(ABC, FrozenModel):
    """Gives the weights of the outputs computed so far, at a step that is skipped. Frozen."""

    keeps_latents: ClassVar[bool] = False  # whether what entered the site at those steps has to be kept too
    keeps_branches: ClassVar[bool] = False  # whether the outputs of the branch with the prompt have to be, too
    signal: ClassVar[Signal] = "none"  # what `Known.signal` has to be, for the few that depend on the input

    type: str

    @property
    def depth(self) -> int:
        """How many computed outputs the runtime has to keep: its `history`, or one more than its `order`."""
        return int(getattr(self, "history", getattr(self, "order", 0) + 1))

    @abstractmethod
    def weights(self, step: Step) -> Weights:
        """Returns at most `depth` weights, and at most one for each step in `step.past`.

        At a computed step that it corrects, the first weight is that of the step's own output.
        """

    def corrects(self, step: Step) -> bool:
        """Whether the sampler gets a forecast at a computed step too, made of its output and earlier ones."""
        return False

    def combine(self, known: Known, step: Step) -> Tensor:
        """Returns the forecast, with shape (B, *): the weighted sum, unless a method does more."""
        return weighted_sum(self.weights(step), known)

    @classmethod
    def fit(cls, profile: Profile, plan: Sequence[int], **params: Any) -> Self:
        """Returns the forecast for a profile; most have nothing to fit.

        Arguments:
            profile: What was measured on calibration prompts.
            plan: The computed steps, for forecasts that only hold for one plan.
            params: Fields of the forecast that are not fitted.
        """
        return cls(**params)
