"""Training of the small autoencoder: 32 x 32 pixels to 4 x 16 x 16 latents."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL, AutoencoderKLWan
from torch.nn import functional
from tqdm import trange

from .data import BACKGROUNDS, load_emoji, paint

Autoencoder = AutoencoderKL | AutoencoderKLWan
STEPS = 2200
BATCH = 16
LEARNING_RATE = 2e-3


def build_vae(**latent_statistics: float) -> AutoencoderKL:
    """Build the autoencoder with random weights."""
    return AutoencoderKL(
        block_out_channels=(24, 48),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=32,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        **latent_statistics,
    )


def load_pictures() -> torch.Tensor:
    """Paint every emoji on every background, with shape (backgrounds, n, 3, 32, 32)."""
    _, rgba = load_emoji()
    return torch.stack([torch.from_numpy(paint(rgba, colour)) for colour in BACKGROUNDS])


def _edges(pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Differences between neighbouring pixels, across and down."""
    return pictures.diff(dim=-1), pictures.diff(dim=-2)


def _loss(vae: AutoencoderKL, pictures: torch.Tensor) -> torch.Tensor:
    posterior = vae.encode(pictures).latent_dist
    decoded = vae.decode(posterior.sample()).sample
    kl = posterior.kl().mean() / pictures[0].numel()
    return difference(decoded, pictures) + 1e-3 * kl


def difference(decoded: torch.Tensor, pictures: torch.Tensor) -> torch.Tensor:
    """L1, on the gradients too: that keeps the outlines sharp, which 32 pixels live by."""
    pairs = zip(_edges(decoded), _edges(pictures), strict=True)
    return functional.l1_loss(decoded, pictures) + 0.5 * sum(functional.l1_loss(*pair) for pair in pairs)


@torch.no_grad()
def encode(vae: Autoencoder, pictures: torch.Tensor, portion: int = 256) -> torch.Tensor:
    """Encode pictures to latent means, in portions.

    Args:
        vae: The trained autoencoder.
        pictures: Pictures with shape (n, 3, 32, 32) in [-1, 1], or clips with shape (n, 3, frames, 32, 32).
        portion: How many to encode at once.

    Returns:
        Unscaled latents, for pictures with shape (n, 4, 16, 16).
    """
    return torch.cat([vae.encode(part).latent_dist.mean for part in pictures.split(portion)])


@torch.no_grad()
def measure_psnr(vae: Autoencoder, pictures: torch.Tensor, portion: int = 256) -> float:
    """Mean PSNR in dB of decoded pictures or clips, for a range of [0, 1]."""
    latents = encode(vae, pictures, portion)
    decoded = torch.cat([vae.decode(part).sample for part in latents.split(portion)])
    error = ((decoded.clamp(-1, 1) - pictures) / 2).square().flatten(1).mean(dim=1)
    return float((-10 * error.log10()).mean())


def train_vae(folder: Path, steps: int = STEPS) -> AutoencoderKL:
    """Train the autoencoder, or load it if `folder` has it already.

    Args:
        folder: Where the weights (float32) and `measured.json` go.
        steps: Number of optimiser steps.

    Returns:
        The autoencoder, with scaling and shift factor measured on its training latents.
    """
    if (folder / "measured.json").exists():
        return AutoencoderKL.from_pretrained(folder).eval()
    torch.manual_seed(0)
    pictures = load_pictures()
    vae, flat = build_vae(), pictures.flatten(0, 1)
    minutes = fit(vae, lambda step: _loss(vae, flat[torch.randint(len(flat), (BATCH,))]), steps)
    latents = encode(vae, flat[::5])
    vae.register_to_config(scaling_factor=float(1 / latents.std()), shift_factor=float(latents.mean()))
    keep(vae, folder, {"steps": steps, "minutes": minutes, "psnr": measure_psnr(vae, flat[::5])})
    return vae


def fit(vae: Autoencoder, loss_of: Callable[[int], torch.Tensor], steps: int, rate: float = LEARNING_RATE) -> float:
    """Train an autoencoder of pictures or clips, and leave it in evaluation mode.

    Args:
        vae: The freshly built autoencoder; what needs no gradient is left as it is.
        loss_of: Returns the loss of a step, given its number.
        steps: Number of optimiser steps.
        rate: The highest learning rate.

    Returns:
        The minutes it took.
    """
    trained = [parameter for parameter in vae.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.05)
    start = time.monotonic()
    bar = trange(steps, desc="training VAE", mininterval=2)
    for step in bar:
        loss = loss_of(step)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
    vae.eval()
    return (time.monotonic() - start) / 60


def keep(vae: Autoencoder, folder: Path, measured: dict[str, float]) -> None:
    """Write the weights and what was measured; `measured.json` last, as it says that all is there."""
    vae.save_pretrained(folder)
    (folder / "measured.json").write_text(json.dumps(measured, indent=1) + "\n")
