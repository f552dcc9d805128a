"""What a module returns, whatever its structure: its tensors, and how they are put together again.

Lists, tuples, dictionaries and diffusers' `BaseOutput` are taken apart by torch's pytrees; anything else is
kept as it is.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only


@dataclass(frozen=True)
class Hole:
    """Where a tensor was."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device


def split_tensors(output: Any) -> tuple[Any, list[Tensor]]:
    """Returns an output with holes where its tensors were, and the tensors."""
    tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
    return tree_map_only(Tensor, lambda value: Hole(value.shape, value.dtype, value.device), output), tensors


def join_tensors(holes: Any, tensors: Iterable[Tensor]) -> Any:
    """Returns the output with tensors in its holes, in the order they were taken out."""
    rest = iter(tensors)
    return tree_map_only(Hole, lambda _: next(rest), holes)


def fill_zeros(holes: Any) -> Any:
    """Returns an output of the same structure and shapes, for what will not be used."""
    return tree_map_only(Hole, lambda one: torch.zeros(one.shape, dtype=one.dtype, device=one.device), holes)


def first_shape(args: Sequence[Any], kwargs: Mapping[str, Any]) -> torch.Size | None:
    """Returns the shape of the first tensor of a call."""
    return next((value.shape for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)


def take_half(value: Any, count: int) -> Any:
    """Returns a value with the second half of all its tensors that have so many samples."""
    return tree_map_only(Tensor, lambda x: x[count // 2 :] if x.ndim and len(x) == count else x, value)
