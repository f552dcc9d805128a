"""What a training step is shown: latents, noise and captions, seeded by the step."""

from dataclasses import dataclass

import torch
from diffusers import AutoencoderOobleck
from torch import Tensor
from tqdm import trange
from transformers import T5Tokenizer

from ..demo.batches import CAPTION_DROPOUT
from ..demo.text import tokenize
from ..demo.vae import encode
from .sounds import Scenes, play

SOUNDS = 16_384  # there are 504 captions, and no two sounds of one caption are the same
BATCH = 32
PORTION = 128


@dataclass
class Captioned:
    """The training set: latents and token ids."""

    latents: Tensor
    ids: Tensor

    def batch(self, step: int) -> tuple[Tensor, ...]:
        """Draw the batch of a step; its seed is the step, so resuming changes nothing."""
        seeded = torch.Generator().manual_seed(step)
        picks = torch.randint(len(self.latents), (BATCH,), generator=seeded)
        latents = self.latents[picks].float()
        noise = torch.randn(latents.shape, generator=seeded)
        time = torch.sigmoid(1.2 * torch.randn(BATCH, generator=seeded))
        dropped = torch.rand(BATCH, generator=seeded) < CAPTION_DROPOUT
        return latents, noise, time, self.ids[picks], dropped


def load_training_set(vae: AutoencoderOobleck, tokenizer: T5Tokenizer) -> Captioned:
    """Play and encode all sounds once; training then never touches them."""
    seeded, latents, captions = torch.Generator().manual_seed(1), list[Tensor](), list[str]()
    for _ in trange(0, SOUNDS, PORTION, desc="encoding sounds", mininterval=2):
        scenes = Scenes.draw(PORTION, seeded)
        latents.append(encode(vae, play(scenes)).half())
        captions += scenes.captions()
    return Captioned(torch.cat(latents), tokenize(tokenizer, captions))
