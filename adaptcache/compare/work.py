"""Counts the work done inside a denoiser: what tells skipped blocks from skipped calls."""

from __future__ import annotations

from functools import partial
from typing import Any, Self

from torch import Tensor, nn

from ..gate.watch import denoisers_of

__all__ = ["BlockCounter", "blocks_of"]


def blocks_of(denoiser: nn.Module) -> list[nn.Module]:
    """Returns the blocks of a denoiser, or the denoiser itself where it has no lists of blocks."""
    lists = [child for child in denoiser.children() if isinstance(child, nn.ModuleList) and len(child)]
    return [block for blocks in lists for block in blocks] or [denoiser]


class BlockCounter:
    """Adds up the share of each block that is really computed, while it is entered.

    The share is that of the multiplications of the block's weights that ran. Methods replace the
    forwards of blocks and attentions, so only what lies below them tells what was computed.

    Arguments:
        pipe: A diffusers pipeline.
    """

    def __init__(self, pipe: Any) -> None:
        self.denoisers = denoisers_of(pipe)
        self.blocks = len(blocks_of(self.denoisers[0]))
        self.work = 0.0
        self._undo: list[Any] = []

    def __enter__(self) -> Self:
        for denoiser in self.denoisers:
            for block in blocks_of(denoiser):
                for leaf in block.modules():
                    weight = getattr(leaf, "weight", None)
                    if not list(leaf.children()) and isinstance(weight, nn.Parameter) and weight.dim() > 1:
                        self._undo.append(leaf.register_forward_hook(partial(self._ran, weight.numel())))
        return self

    def _ran(self, size: int, leaf: nn.Module, given: Any, output: Tensor) -> None:
        # each weight of a linear layer is used once a token, each of a convolution once a pixel
        channels = output.shape[1] if isinstance(leaf, (nn.Conv2d, nn.Conv3d)) else output.shape[-1]
        self.work += size * (output.numel() // channels)

    def __exit__(self, *_: object) -> None:
        for handle in self._undo:
            handle.remove()
        self._undo.clear()
