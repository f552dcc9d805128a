"""What a builder returns, and how it makes noise for embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor

__all__ = ["PROMPTS", "Setup", "autoencoder", "noise", "ones", "prompts"]

PROMPTS = 3


@dataclass(frozen=True)
class Setup:
    """A tiny pipeline with random weights and how it is called.

    Arguments:
        pipe: A diffusers pipeline of a true class.
        call: Arguments of `__call__` that all samples share.
        prompts: The arguments of each sample, with a first dimension of 1.
        branches: Denoiser calls in each step.
        steps: What `num_inference_steps` is set to.
    """

    pipe: Any
    call: Mapping[str, Any]
    prompts: Sequence[Mapping[str, Any]]
    branches: int = 1
    steps: int = 6


def noise(seed: int, *shape: int) -> Tensor:
    """Returns normal noise that depends on nothing but the seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def ones(*shape: int) -> Tensor:
    """Returns an attention mask that hides nothing."""
    return torch.ones(1, *shape, dtype=torch.long)


def prompts(**shapes: Sequence[int]) -> list[dict[str, Tensor]]:
    """Returns the arguments of a few samples: random tensors of the shapes given, but for the batch.

    Names that end with "mask" get ones.
    """
    made = []
    for sample in range(PROMPTS):
        row = {}
        for number, (name, shape) in enumerate(shapes.items()):
            masked = name.endswith("mask")
            row[name] = ones(*shape) if masked else noise(100 * sample + number, 1, *shape)
        made.append(row)
    return made


def autoencoder(channels: int = 4) -> AutoencoderKL:
    """Returns an autoencoder that halves height and width."""
    return AutoencoderKL(
        block_out_channels=(4, 4),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels,
        norm_num_groups=2,
        layers_per_block=1,
        mid_block_add_attention=False,
        scaling_factor=1.0,
        shift_factor=0.0,
    )
