"""What goes through the blocks of a denoiser: the image, often the text, by name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from torch import Tensor, nn

from ..clock import Step
from .models import IMAGE, Model

__all__ = ["Pass", "Streams", "added", "as_returned", "modulated", "returned", "streams_of", "summed"]

Streams: TypeAlias = dict[str, Tensor]


@dataclass
class Pass:
    """One call of the denoiser, while it goes through the blocks.

    Arguments:
        step: Where the run is, with the signal.
        branch: Which call of this step it is.
        raw: What entered the first block.
        entered: What entered the site.
        tail: What entered the blocks after it.
        skips: Whether the site is skipped.
    """

    step: Step
    branch: int
    raw: Streams
    entered: Streams = field(default_factory=dict)
    tail: Streams = field(default_factory=dict)
    skips: bool = False


def streams_of(model: Model, block: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Streams:
    """Returns the streams among the arguments of a block."""
    names = list(inspect.signature(type(block).forward).parameters)[1:]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    return {name: given[name] for name in model.streams if isinstance(given.get(name), Tensor)}


def returned(model: Model, output: Any) -> Streams:
    """Returns the streams that a block returned."""
    if isinstance(output, Tensor):
        return {IMAGE: output}
    pairs = zip(model.streams, output, strict=False)
    return {name: value for name, value in pairs if isinstance(value, Tensor)}


def as_returned(model: Model, streams: Streams, arity: int) -> Any:
    """Returns streams the way a block returns them: as so many, or the image alone if that is 0."""
    if not arity:
        return streams[IMAGE]
    return tuple(streams.get(name) for name in model.streams[:arity])


def added(entered: Streams, left: Streams) -> Streams:
    """Returns what was added to each stream; of a sequence that the text was put before, the end."""
    sums = {}
    for name, value in left.items():
        if (before := entered.get(name)) is None:
            continue
        if value.ndim == 3 and value.shape[1] > before.shape[1]:
            value = value[:, -before.shape[1] :]
        if value.shape == before.shape:
            sums[name] = value - before
    return sums


def summed(value: Tensor, extra: Tensor) -> Tensor:
    """Returns a stream with what is added to it; of a sequence that the text was put before, to the end."""
    before = value.shape[1] - extra.shape[1] if value.ndim == 3 else 0
    if not before:
        return value + extra
    total = value.clone()
    total[:, before:] += extra
    return total


def modulated(
    x: Tensor, model: Model, block: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Tensor:
    """Returns the image after a block's first normalisation, modulated by the time."""
    bound = inspect.signature(type(block).forward).bind(block, *args, **kwargs).arguments
    assert isinstance(block.norm1, nn.Module)
    parts = block.norm1(x, **{name: bound[own] for name, own in model.modulated.items()})
    value: Tensor = parts[0] if isinstance(parts, tuple) else parts
    return value
