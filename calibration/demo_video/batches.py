"""What a training step is shown: latents, noise and captions, seeded by the step."""

from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import trange
from transformers import T5Tokenizer

from ..demo.batches import CAPTION_DROPOUT
from ..demo.text import tokenize
from .basis import Basis
from .clips import Scenes, film

CLIPS = 8192  # there are 3,888 captions, and no two clips of one caption are the same
BATCH = 32
SHIFT = 2.0  # of the noise levels; Wan has 3 for small pictures
PORTION = 64


@dataclass
class Captioned:
    """The training set: normalised latents and token ids."""

    latents: Tensor
    ids: Tensor
    empty: Tensor

    def batch(self, step: int) -> tuple[Tensor, ...]:
        """Draw the batch of a step; its seed is the step, so resuming changes nothing."""
        seeded = torch.Generator().manual_seed(step)
        picks = torch.randint(len(self.latents), (BATCH,), generator=seeded)
        latents = self.latents[picks].float()
        noise = torch.randn(latents.shape, generator=seeded)
        sigma = torch.sigmoid(torch.randn(BATCH, generator=seeded))
        sigma = SHIFT * sigma / (1 + (SHIFT - 1) * sigma)
        dropped = torch.rand(BATCH, 1, generator=seeded) < CAPTION_DROPOUT
        return latents, noise, sigma, torch.where(dropped, self.empty, self.ids[picks])


def load_training_set(basis: Basis, tokenizer: T5Tokenizer) -> Captioned:
    """Film and encode all clips once; training then never touches them."""
    scenes = Scenes.draw(CLIPS, torch.Generator().manual_seed(1))
    parts = [
        basis.encode(film(scenes.part(first, first + PORTION))).half()
        for first in trange(0, CLIPS, PORTION, desc="encoding clips", mininterval=2)
    ]
    return Captioned(torch.cat(parts), tokenize(tokenizer, scenes.captions()), tokenize(tokenizer, [""]))
