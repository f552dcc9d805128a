"""What a training step is shown: latents, noise and captions, seeded by the step."""

from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL
from transformers import CLIPTokenizer, T5Tokenizer

from .data import BACKGROUNDS, caption, load_emoji
from .focus import common_names
from .text import tokenize
from .vae import encode, load_pictures

BATCH = 64
CAPTION_DROPOUT = 0.1
FOCUS_FROM = 1300  # from this step on only the common emoji are shown, so that they become clear


@dataclass
class Captioned:
    """The training set: latents and token ids by (background, emoji)."""

    latents: torch.Tensor
    clip_ids: torch.Tensor
    t5_ids: torch.Tensor
    empty: tuple[torch.Tensor, torch.Tensor]
    common: torch.Tensor  # numbers of the common emoji

    def batch(self, step: int) -> tuple[torch.Tensor, ...]:
        """Draw the batch of a step; its seed is the step, so resuming changes nothing."""
        seeded = torch.Generator().manual_seed(step)
        picks = torch.randint(self.latents.shape[0], (BATCH,), generator=seeded)
        emoji = torch.randint(self.latents.shape[1], (BATCH,), generator=seeded)
        if step >= FOCUS_FROM:
            emoji = self.common[emoji % len(self.common)]
        latents = self.latents[picks, emoji]
        noise = torch.randn(latents.shape, generator=seeded)
        sigma = torch.sigmoid(torch.randn(BATCH, generator=seeded))
        dropped = torch.rand(BATCH, 1, generator=seeded) < CAPTION_DROPOUT
        clip_ids = torch.where(dropped, self.empty[0], self.clip_ids[picks, emoji])
        t5_ids = torch.where(dropped, self.empty[1], self.t5_ids[picks, emoji])
        return latents, noise, sigma, clip_ids, t5_ids


def load_training_set(vae: AutoencoderKL, clip_tokenizer: CLIPTokenizer, t5_tokenizer: T5Tokenizer) -> Captioned:
    """Encode all pictures and captions once; training then never touches them."""
    names, _ = load_emoji()
    common = common_names()
    prompts = [caption(name, colour) for colour in BACKGROUNDS for name in names]
    shape = (len(BACKGROUNDS), len(names))
    latents = encode(vae, load_pictures().flatten(0, 1))
    latents = (latents - vae.config.shift_factor) * vae.config.scaling_factor
    return Captioned(
        latents.unflatten(0, shape),
        tokenize(clip_tokenizer, prompts).unflatten(0, shape),
        tokenize(t5_tokenizer, prompts).unflatten(0, shape),
        (tokenize(clip_tokenizer, [""]), tokenize(t5_tokenizer, [""])),
        torch.tensor([names.index(name) for name in common if name in names]),
    )
