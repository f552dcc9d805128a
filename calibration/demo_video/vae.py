"""The small video autoencoder: its encoder is written down, its decoder is trained."""

import json
from functools import partial
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor, nn

from ..demo.vae import difference, fit, keep, measure_psnr
from .basis import CHANNELS, PATCH, Basis
from .clips import Scenes, film

STEPS = 3000
CYCLE = 500  # steps between checkpoints, in which the learning rate rises and falls
BATCH = 4
TEST = 1_000_000  # a seed that no step has
PORTION = 64
LEARNING_RATE = 1e-3
ROUGHNESS = 0.05  # noise on the latents, as a transformer's are not exact either
STEADY = 256.0  # in a channel that says nothing: so loud that normalising hardly changes the others
QUIET = 0.02  # what silu is given, as silu(x) is x / 2 near 0
BEFORE = 34  # channels of the encoder: two for each latent channel, one steady, one spare


def build_vae(basis: Basis) -> AutoencoderKLWan:
    """Build the autoencoder: the layers of Wan 2.1 on the pixel blocks of 2.2, with one level of depth."""
    vae = AutoencoderKLWan(
        base_dim=BEFORE,
        decoder_base_dim=24,
        z_dim=CHANNELS,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[True],
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=PATCH,
        scale_factor_temporal=2,
        latents_mean=[0.0] * CHANNELS,
        latents_std=basis.scale.tolist(),
    )
    with torch.no_grad():
        write_encoder(vae, basis)
        open_decoder(vae, basis)
    return vae


def write_encoder(vae: AutoencoderKLWan, basis: Basis) -> None:
    """Write the basis into the encoder: its residual branches and its attention add nothing."""
    encoder = vae.encoder
    for name, parameter in [*encoder.named_parameters(), *vae.quant_conv.named_parameters()]:
        if not name.endswith("gamma"):
            parameter.zero_()
    encoder.conv_in.weight[range(12), range(12), -1, 1, 1] = 1
    _, resample, widen = encoder.down_blocks
    # Each frame is seen both as a first and as a second one ...
    halves = basis.components.view(2, 3, 2, 2, 2, 2, CHANNELS)  # frame, colour, (row, in it), (column, in it)
    blocks = halves.permute(0, 6, 1, 5, 3, 2, 4).reshape(2 * CHANNELS, 12, 2, 2)
    pick = resample.resample[1]
    pick.weight[: 2 * CHANNELS, :12, :2, :2] = blocks
    pick.bias[2 * CHANNELS] = STEADY
    # ... and of two frames, the parts that are what they are go together.
    each = torch.arange(CHANNELS)
    resample.time_conv.weight[each, each, 1] = 1
    resample.time_conv.weight[each, each + CHANNELS, 2] = 1
    resample.time_conv.weight[2 * CHANNELS, 2 * CHANNELS, 2] = 1
    widen.conv_shortcut.weight[range(BEFORE), range(BEFORE)] = 1
    encoder.norm_out.gamma.fill_(QUIET)
    loudness = QUIET / 2 * (2 * BEFORE) ** 0.5 / STEADY
    for first in (0, CHANNELS):
        encoder.conv_out.weight[each, each + first, -1, 1, 1] = 1 / loudness
    encoder.conv_out.bias[:CHANNELS] = -basis.mean @ basis.components
    encoder.conv_out.bias[CHANNELS:] = -8  # log-variance
    vae.quant_conv.weight[range(2 * CHANNELS), range(2 * CHANNELS)] = 1


def open_decoder(vae: AutoencoderKLWan, basis: Basis) -> None:
    """Start the decoder close to a linear map that passes on all it is given, which halves its training."""
    for name, module in [*vae.decoder.named_modules(), ("", vae.post_quant_conv)]:
        if not isinstance(module, nn.Conv2d | nn.Conv3d):
            continue
        weight, middle = module.weight, module.weight.shape[-1] // 2
        module.bias.zero_()
        weight.mul_(0.0 if name.endswith(("conv2", "proj")) else 0.3)
        if name.endswith(("conv2", "proj", "to_qkv")):
            continue
        straight = nn.init.orthogonal_(torch.empty(weight.shape[:2]))
        if name.endswith("time_conv"):
            straight = nn.init.orthogonal_(torch.empty(len(weight) // 2, weight.shape[1])).repeat(2, 1)
        (weight[:, :, -1] if weight.ndim == 5 else weight)[:, :, middle, middle] += straight
    vae.post_quant_conv.weight.copy_(torch.diag(1 / basis.scale)[:, :, None, None, None])


def train_vae(folder: Path, basis: Basis, steps: int = STEPS) -> AutoencoderKLWan:
    """Train the decoder in cycles of the learning rate, or go on after the last whole cycle.

    Args:
        folder: Where the weights (float32) and `measured.json` go after each cycle.
        basis: What the latents are.
        steps: Number of optimiser steps.
    """
    path = folder / "measured.json"
    measured = json.loads(path.read_text()) if path.exists() else {"steps": 0, "minutes": 0.0}
    torch.manual_seed(0)
    vae = AutoencoderKLWan.from_pretrained(folder) if measured["steps"] else build_vae(basis)
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    test = film(Scenes.draw(128, torch.Generator().manual_seed(TEST)))
    while (done := measured["steps"]) < steps:
        more = min(CYCLE, steps - done)
        minutes = measured["minutes"] + fit(vae, partial(_loss, vae, basis, done), more, LEARNING_RATE)
        psnr = measure_psnr(vae, test, PORTION)
        measured = {"steps": done + more, "minutes": minutes, "psnr": psnr}
        keep(vae, folder, measured)
    return vae.eval()


def _loss(vae: AutoencoderKLWan, basis: Basis, done: int, step: int) -> Tensor:
    """Loss of a step after `done` others, on clips that its number determines."""
    seeded = torch.Generator().manual_seed(done + step)
    clips = film(Scenes.draw(BATCH, seeded))
    latents = basis.encode(clips)
    latents = latents + ROUGHNESS * torch.randn(latents.shape, generator=seeded)
    return difference(vae.decode(latents * basis.scale[:, None, None, None]).sample, clips)
