"""Training of the autoencoder: 64 x 64 pixels to 16 x 16 x 16 latents."""

import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from tqdm import tqdm

from ..demo.vae import difference, keep
from .layouts import SIZE, Layouts

CHANNELS = 16
BATCH = 128
LEARNING_RATE = 2e-3
KL_WEIGHT = 3e-3
WARM_UP = 100  # steps
MEASURED = 1024  # pictures


def build_vae() -> AutoencoderKL:
    """Build the autoencoder with random weights."""
    return AutoencoderKL(
        block_out_channels=(32, 64, 128),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=8,
        sample_size=SIZE,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def half_precision(device: torch.device) -> torch.autocast:
    """Compute in bfloat16 on a GPU and in float32 on a CPU."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type != "cpu")


def new_pictures(layouts: Layouts, count: int) -> Tensor:
    """Draw pictures of random icons, in the memory format that convolutions are fastest in."""
    device = layouts.icons.device
    which = torch.randint(len(layouts.icons), (count,), generator=layouts.dice, device=device)
    pictures = layouts.draw(which, layouts.backgrounds(which))
    return pictures.contiguous(memory_format=torch.channels_last)


def loss_of(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """L1 on pixels and their differences, and the price of the latents."""
    with half_precision(pictures.device):
        posterior = vae.encode(pictures).latent_dist
        decoded = vae.decode(posterior.sample()).sample
    kl = posterior.kl().float().mean() / pictures[0].numel()
    return difference(decoded.float(), pictures) + KL_WEIGHT * kl


@torch.no_grad()
def measure(vae: AutoencoderKL, layouts: Layouts) -> dict[str, float]:
    """Measure the statistics of the latents and the PSNR of decoded pictures, in dB for a range of [0, 1]."""
    pictures = new_pictures(layouts, MEASURED)
    latents = torch.cat([vae.encode(part).latent_dist.mean for part in pictures.split(BATCH)])
    decoded = torch.cat([vae.decode(part).sample for part in latents.split(BATCH)])
    error = ((decoded.clamp(-1, 1) - pictures) / 2).square().flatten(1).mean(dim=1)
    return {
        "psnr": float((-10 * error.log10()).mean()),
        "scaling_factor": float(1 / latents.std()),
        "shift_factor": float(latents.mean()),
    }


def train_vae(folder: Path, layouts: Layouts, steps: int, minutes: float) -> AutoencoderKL:
    """Train the autoencoder, or load it if `folder` has it already.

    Args:
        folder: Where the weights (float32) and `measured.json` go.
        layouts: Draws the pictures; the autoencoder is trained where its icons are.
        steps: Number of optimiser steps.
        minutes: Wall-clock limit; the learning rate decays towards whichever limit is nearer.

    Returns:
        The autoencoder, with scaling and shift factor measured on new pictures.
    """
    device = layouts.icons.device
    if (folder / "measured.json").exists():
        return AutoencoderKL.from_pretrained(folder).to(device).eval()
    vae = build_vae().to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), LEARNING_RATE, betas=(0.9, 0.99), weight_decay=1e-4)
    bar, start, step = tqdm(total=steps, desc="training VAE", mininterval=5), time.monotonic(), 0
    while (progress := max(step / steps, (time.monotonic() - start) / (60 * minutes))) < 1:
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1, (step + 1) / WARM_UP, 1.02 - progress)
        loss = loss_of(vae, new_pictures(layouts, BATCH))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        bar.update()
        if step % 100 == 0:
            bar.set_postfix(loss=f"{loss.item():.4f}")
    bar.close()
    spent = (time.monotonic() - start) / 60
    measured = measure(vae.eval(), layouts)
    vae.register_to_config(**{key: value for key, value in measured.items() if key != "psnr"})
    keep(vae, folder, {"steps": step, "minutes": spent, "psnr": measured["psnr"]})
    return vae
