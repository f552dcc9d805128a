"""The latents of the video demo: principal components of 2 frames x 4 x 4 pixels.

A convolutional encoder takes hours to learn on a CPU what an eigenvalue problem gives in a second, and
latents that are fixed from the start let autoencoder and transformer be trained side by side. `vae.py`
writes the basis into the weights of an `AutoencoderKLWan`.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from .clips import Scenes, film

CHANNELS = 16
PATCH = 4  # pixels across, three colours each, in two frames: 96 numbers become 16
EVENNESS = 0.75  # 1 makes all channels equally loud; less leaves details fainter than colours


@dataclass(frozen=True)
class Basis:
    """A linear map from pairs of patches to latents.

    Args:
        mean: The mean pair of patches, with shape (96,), ordered (frame, colour, row, column).
        components: The principal components, with shape (96, CHANNELS).
        scale: What a channel is divided by for the transformer, with shape (CHANNELS,).
    """

    mean: Tensor
    components: Tensor
    scale: Tensor

    @classmethod
    def fit(cls, clips: Tensor) -> "Basis":
        """Find the principal components of clips with shape (n, 3, FRAMES, SIZE, SIZE)."""
        rows = pairs(clips).flatten(0, 3)
        variance, directions = torch.linalg.eigh(torch.cov(rows.T))
        deviation = variance.flip(0)[:CHANNELS].sqrt()
        scale = deviation**EVENNESS * deviation[0] ** (1 - EVENNESS)
        return cls(rows.mean(dim=0), directions.flip(1)[:, :CHANNELS].contiguous(), scale)

    @classmethod
    def load(cls, path: Path) -> "Basis":
        """Read the basis, or find it on the first call and keep it."""
        if not path.exists():
            basis = cls.fit(film(Scenes.draw(512, torch.Generator().manual_seed(0))))
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(vars(basis), path)
        return cls(**load_file(path))

    def encode(self, clips: Tensor) -> Tensor:
        """Return scaled latents with shape (n, CHANNELS, 5, 8, 8)."""
        return ((pairs(clips) - self.mean) @ self.components / self.scale).movedim(-1, 1)


def pairs(clips: Tensor) -> Tensor:
    """Cut clips of an odd number of frames into pairs of patches, with shape (n, 5, 8, 8, 96)."""
    cut = clips.unfold(3, PATCH, PATCH).unfold(4, PATCH, PATCH).permute(0, 2, 3, 4, 1, 5, 6).flatten(4)
    cut = torch.cat([cut[:, :1], cut], dim=1)  # the first frame stands alone: it is paired with itself
    return torch.cat([cut[:, 0::2], cut[:, 1::2]], dim=-1)
