"""What a layer returns, whatever its structure: its tensors, and how they are put together again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["blank", "last_half", "leading", "put_together", "taken_apart"]


@dataclass(frozen=True)
class Hole:
    """Where a tensor was."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device


def taken_apart(output: Any) -> tuple[Any, list[Tensor]]:
    """Returns an output with holes where its tensors were, and the tensors."""
    tensors: list[Tensor] = []

    def within(value: Any) -> Any:
        if isinstance(value, Tensor):
            tensors.append(value)
            return Hole(value.shape, value.dtype, value.device)
        if isinstance(value, Mapping):  # diffusers' outputs are dictionaries with attributes
            return type(value)(**{name: within(part) for name, part in value.items()})
        if isinstance(value, (list, tuple)):
            return type(value)(within(part) for part in value)
        return value

    return within(output), tensors


def put_together(holes: Any, tensors: Sequence[Tensor]) -> Any:
    """Returns the output with tensors in its holes."""
    return filled(holes, iter(tensors))


def filled(value: Any, tensors: Iterator[Tensor]) -> Any:
    """Fills holes in the order they were made."""
    if isinstance(value, Hole):
        return next(tensors)
    if isinstance(value, Mapping):
        return type(value)(**{name: filled(part, tensors) for name, part in value.items()})
    if isinstance(value, (list, tuple)):
        return type(value)(filled(part, tensors) for part in value)
    return value


def blank(value: Any) -> Any:
    """Returns an output of the same structure and shapes, for what nobody is going to use."""
    if isinstance(value, Hole):
        return torch.zeros(value.shape, dtype=value.dtype, device=value.device)
    if isinstance(value, Mapping):
        return type(value)(**{name: blank(part) for name, part in value.items()})
    if isinstance(value, (list, tuple)):
        return type(value)(blank(part) for part in value)
    return value


def leading(args: Sequence[Any], kwargs: Mapping[str, Any]) -> torch.Size | None:
    """Returns the shape of the first tensor of a call."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            return value.shape
    return None


def last_half(value: Any, count: int) -> Any:
    """Returns a value with the second half of all its tensors that have so many samples."""
    if isinstance(value, Tensor):
        return value[count // 2 :] if value.ndim and len(value) == count else value
    if isinstance(value, Mapping):
        return type(value)(**{name: last_half(part, count) for name, part in value.items()})
    if isinstance(value, (list, tuple)):
        return type(value)(last_half(part, count) for part in value)
    return value
