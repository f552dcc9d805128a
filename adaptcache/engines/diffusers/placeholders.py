"""What a denoiser call returns at a skipped step: something of the right type, structure and shape.

The pipeline makes a guided output of it, which is thrown away, so the values do not matter. Where the
branch was called before with as many samples it is what it returned then, unchanged. A guidance interval
that ends can halve a batch, or call a branch for the first time: then it is cut or borrowed.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from torch import Tensor

__all__ = ["OutputPlaceholders"]


class OutputPlaceholders:
    """Keeps the last output of each branch."""

    def __init__(self) -> None:
        self._kept: dict[Hashable, tuple[tuple[Any, ...], Any]] = {}  # branch -> shape of its input, output

    def keep(self, branch: Hashable, args: Any, kwargs: Any, output: Any) -> None:
        """Notes what a branch returned."""
        self._kept[branch] = (lead(args, kwargs), output)

    def tensors(self) -> Iterator[Tensor]:
        """Yields the tensors that are kept."""
        rest: list[Any] = [output for _, output in self._kept.values()]
        while rest:
            value = rest.pop()
            if isinstance(value, Tensor):
                yield value
            elif isinstance(value, Mapping):
                rest += value.values()
            elif isinstance(value, (list, tuple)):
                rest += value

    def find(self, branch: Hashable, others: Sequence[Hashable], args: Any, kwargs: Any) -> tuple[Any, ...]:
        """Returns a placeholder, in a tuple that is empty where there is none and the call has to be made.

        Arguments:
            branch: The branch that is called.
            others: Branches of the same module, to borrow from.
            args: What it is called with.
            kwargs: What it is called with, by name.
        """
        shape = lead(args, kwargs)
        known = [self._kept[name] for name in (branch, *others) if name in self._kept]
        for given, output in known:
            if given == shape:
                return (output,)
        for given, output in known:
            if given[1:] == shape[1:]:
                with suppress(LookupError):
                    return (resized(output, given, shape[0]),)
        return ()


def lead(args: Any, kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    """Returns the shape of the first argument, which are the latents; of a list, its length and shape."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            return tuple(value.shape)
        if isinstance(value, (list, tuple)) and value and isinstance(value[0], Tensor):
            return (len(value), tuple(value[0].shape))
    return (0,)


def resized(output: Any, given: tuple[Any, ...], samples: int) -> Any:
    """Returns an output cut or repeated to another number of samples.

    Arguments:
        output: What a call returned.
        given: The shape of the latents it was called with.
        samples: How many are wanted.

    Raises:
        LookupError: The output does not have one entry a sample.
    """
    listed = isinstance(given[-1], tuple)  # one tensor a sample goes in, and one comes out
    order = [k % given[0] for k in range(samples)]
    if isinstance(output, Tensor) or (listed and isinstance(output, list)):
        if len(output) != given[0]:
            raise LookupError(f"{len(output)} entries for {given[0]} samples")
        return output[order] if isinstance(output, Tensor) else [output[k] for k in order]
    if isinstance(output, (list, tuple)):
        return type(output)(resized(part, given, samples) for part in output)
    if isinstance(output, Mapping):  # diffusers' outputs are dictionaries with attributes
        return type(output)(**{name: resized(part, given, samples) for name, part in output.items()})
    return output
