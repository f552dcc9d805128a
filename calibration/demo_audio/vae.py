"""Training of the small sound autoencoder: 4,096 samples to 16 x 64 latents."""

from pathlib import Path

import torch
from diffusers import AutoencoderOobleck
from torch import Tensor
from torch.nn import functional

from ..demo.vae import encode, fit, keep, measure_psnr
from .sounds import RATE, Scenes, play

CHANNELS = 16
STEPS = 2500
BATCH, CROP = 16, 1024  # sounds in a step, and samples of each: nothing in it reaches further
TEST = 1_000_000  # a seed that no step has
WINDOWS = (64, 256, 1024)
NEARNESS = 1e-3  # weight of the divergence from a normal distribution


def build_vae() -> AutoencoderOobleck:
    """Build the autoencoder with random weights."""
    return AutoencoderOobleck(
        encoder_hidden_size=2 * CHANNELS,
        downsampling_ratios=[4, 4, 4],
        channel_multiples=[1, 2, 4],
        decoder_channels=16,
        decoder_input_channels=CHANNELS,
        audio_channels=1,
        sampling_rate=RATE,
    )


def spectrum(sound: Tensor, window: int) -> Tensor:
    """Return the loudness of each frequency over time."""
    shape = torch.hann_window(window)
    return torch.stft(sound[:, 0], window, window // 4, window=shape, return_complex=True).abs() / window**0.5


def difference(decoded: Tensor, sounds: Tensor) -> Tensor:
    """L1, on spectra of several windows too: soft partials are heard that waves hardly show."""
    spectra = (functional.l1_loss(spectrum(decoded, w), spectrum(sounds, w)) for w in WINDOWS)
    return functional.l1_loss(decoded, sounds) + sum(spectra) / len(WINDOWS)


def loss(vae: AutoencoderOobleck, step: int) -> Tensor:
    """Loss of a step, on sounds that its number determines."""
    seeded = torch.Generator().manual_seed(step)
    sounds = play(Scenes.draw(BATCH, seeded))
    first = int(torch.randint((sounds.shape[-1] - CROP) // 64, (1,), generator=seeded)) * 64
    sounds = sounds[..., first : first + CROP]
    posterior = vae.encode(sounds).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=seeded)
    decoded = vae.decode(posterior.mean + posterior.std * noise).sample
    return difference(decoded, sounds) + NEARNESS * posterior.kl() / 64


def train_vae(folder: Path, steps: int = STEPS) -> AutoencoderOobleck:
    """Train the autoencoder, or load it if `folder` has it already.

    Args:
        folder: Where the weights (float32) and `measured.json` go.
        steps: Number of optimiser steps.

    Returns:
        The autoencoder, whose latents have unit variance in every channel.
    """
    if (folder / "measured.json").exists():
        return AutoencoderOobleck.from_pretrained(folder).eval()
    torch.manual_seed(0)
    vae, test = build_vae(), play(Scenes.draw(256, torch.Generator().manual_seed(TEST)))
    minutes = fit(vae, lambda step: loss(vae, step), steps)
    level(vae, encode(vae, test).std(dim=(0, 2)))
    keep(vae, folder, {"steps": steps, "minutes": minutes, "psnr": measure_psnr(vae, test)})
    return vae


@torch.no_grad()
def level(vae: AutoencoderOobleck, deviation: Tensor) -> None:
    """Write the scale of the latents into the weights: a StableAudioPipeline does not scale them itself.

    Args:
        vae: The trained autoencoder.
        deviation: Of its latents, with shape (CHANNELS,).
    """
    last, first = vae.encoder.conv2, vae.decoder.conv1
    last.weight_g[:CHANNELS] /= deviation[:, None, None]
    last.bias[:CHANNELS] /= deviation
    last.bias[CHANNELS:] -= deviation.log()  # softplus is close to exp where little is uncertain
    norm = first.weight_v.flatten(1).norm(dim=1)[:, None, None]
    weight = first.weight_g * first.weight_v / norm * deviation[None, :, None]
    first.weight_v.copy_(weight)
    first.weight_g.copy_(weight.flatten(1).norm(dim=1)[:, None, None])
