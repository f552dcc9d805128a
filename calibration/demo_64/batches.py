"""What a training step is shown: latents from a pool, noise and captions, seeded by the step."""

from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from tqdm import tqdm
from transformers import CLIPTokenizer, T5Tokenizer

from ..demo.batches import CAPTION_DROPOUT
from ..demo.data import BACKGROUNDS
from ..demo.text import tokenize
from .layouts import Layouts
from .model import pack
from .motifs import caption, icons
from .vae import half_precision

LAYOUTS = 640  # pictures of each icon in the pool
PORTION = 1024
UNIFORM = 0.1  # share of the noise levels drawn uniformly, as few others are near 0 and 1
LOGIT_MEAN, LOGIT_STD = 0.4, 1.2  # of the others; the noisy half is where the layout is settled


@dataclass
class Pool:
    """The training set: pictures as packed latents, and token ids by (icon, background)."""

    latents: Tensor
    icons: Tensor
    backgrounds: Tensor
    ids: tuple[Tensor, Tensor]
    empty: tuple[Tensor, Tensor]

    def batch(self, step: int, size: int) -> tuple[Tensor, ...]:
        """Draw the batch of a step; its seed is the step, so resuming changes nothing."""
        device = self.latents.device
        dice = torch.Generator(device).manual_seed(step)
        picks = torch.randint(len(self.latents), (size,), generator=dice, device=device)
        clean = self.latents[picks].float()
        noise = torch.randn(clean.shape, generator=dice, device=device)
        dropped = torch.rand(size, 1, generator=dice, device=device) < CAPTION_DROPOUT
        captions = self.icons[picks], self.backgrounds[picks]
        shown = (torch.where(dropped, none, ids[captions]) for none, ids in zip(self.empty, self.ids, strict=True))
        return clean, noise, noise_levels(size, dice), *shown


def noise_levels(count: int, dice: torch.Generator) -> Tensor:
    """Draw noise levels in [0, 1]."""
    normal = torch.randn(count, generator=dice, device=dice.device)
    uniform, chance = torch.rand(2, count, generator=dice, device=dice.device)
    return torch.where(chance < UNIFORM, uniform, torch.sigmoid(LOGIT_MEAN + LOGIT_STD * normal))


@torch.no_grad()
def fill_pool(
    vae: AutoencoderKL, layouts: Layouts, tokenizers: tuple[CLIPTokenizer, T5Tokenizer], count: int = LAYOUTS
) -> Pool:
    """Draw and encode `count` pictures of every icon; training then never touches them."""
    device = layouts.icons.device
    which = torch.arange(len(layouts.icons), device=device).repeat(count)
    backgrounds, latents = layouts.backgrounds(which), []
    shift, scale = vae.config.shift_factor, vae.config.scaling_factor
    portions = list(zip(which.split(PORTION), backgrounds.split(PORTION), strict=True))
    for portion in tqdm(portions, desc="filling the pool", mininterval=5):
        pictures = layouts.draw(*portion).contiguous(memory_format=torch.channels_last)
        with half_precision(device):
            means = vae.encode(pictures).latent_dist.mean
        latents.append(pack(scale * (means.float() - shift)).half())
    prompts = [caption(*icon, colour) for icon in icons() for colour in BACKGROUNDS]
    return Pool(
        torch.cat(latents),
        which,
        backgrounds,
        tuple(tokenize(t, prompts).unflatten(0, (-1, len(BACKGROUNDS))).to(device) for t in tokenizers),
        tuple(tokenize(t, [""]).to(device) for t in tokenizers),
    )
