"""Pipelines of the Flux family, which share their parts."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from .setup import Setup, autoencoder, noise, prompts

EULER = FlowMatchEulerDiscreteScheduler
FLUX = {
    "in_channels": 16,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 16,
    "pooled_projection_dim": 16,
    "axes_dims_rope": (4, 6, 6),
}


def flux_parts() -> dict[str, Any]:
    """Returns the components of a Flux pipeline."""
    names = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    return {
        "scheduler": EULER(use_dynamic_shifting=True),
        "vae": autoencoder(),
        "transformer": diffusers.FluxTransformer2DModel(**FLUX, guidance_embeds=True),
        **dict.fromkeys(names),
    }


def flux_prompts() -> list[dict[str, torch.Tensor]]:
    """Returns embeddings for it."""
    return prompts(prompt_embeds=(5, 16), pooled_prompt_embeds=(16,))


def flux() -> Setup:
    call = {"height": 16, "width": 16, "guidance_scale": 3.5}
    return Setup(diffusers.FluxPipeline(**flux_parts()), call, flux_prompts())


def flux_true_cfg() -> Setup:
    call = {
        "height": 16,
        "width": 16,
        "true_cfg_scale": 3.0,
        "negative_prompt_embeds": noise(9, 1, 5, 16),
        "negative_pooled_prompt_embeds": noise(8, 1, 16),
    }
    return Setup(diffusers.FluxPipeline(**flux_parts()), call, flux_prompts(), branches=2)


def flux_img2img() -> Setup:
    call = {"image": noise(7, 1, 3, 16, 16).sigmoid(), "strength": 0.7, "height": 16, "width": 16}
    pipe = diffusers.FluxImg2ImgPipeline(**flux_parts())
    return Setup(pipe, call, flux_prompts(), steps=8)


def flux_controlnet() -> Setup:
    # Its last layers start at zero, as training has it: then it would do nothing.
    controlnet = diffusers.FluxControlNetModel(**FLUX)
    for layer in [controlnet.controlnet_x_embedder, *controlnet.controlnet_blocks]:
        torch.nn.init.normal_(layer.weight, std=0.1)
    pipe = diffusers.FluxControlNetPipeline(**flux_parts(), controlnet=controlnet)
    call = {"control_image": noise(7, 1, 3, 16, 16).sigmoid(), "height": 16, "width": 16}
    return Setup(pipe, call, flux_prompts())


def flux_kontext() -> Setup:
    pipe = diffusers.FluxKontextPipeline(**flux_parts())
    call = {
        "image": noise(7, 1, 3, 16, 16).sigmoid(),
        "height": 16,
        "width": 16,
        "max_area": 256,
        "_auto_resize": False,
    }
    return Setup(pipe, call, flux_prompts())


def flux_inpaint() -> Setup:
    call = {
        "image": noise(7, 1, 3, 16, 16).sigmoid(),
        "mask_image": (noise(6, 1, 1, 16, 16) > 0).float(),
        "strength": 0.8,
        "height": 16,
        "width": 16,
    }
    pipe = diffusers.FluxInpaintPipeline(**flux_parts())
    return Setup(pipe, call, flux_prompts(), steps=8)


FLUXES = {
    "Flux": flux,
    "Flux, two branches": flux_true_cfg,
    "Flux image-to-image": flux_img2img,
    "Flux ControlNet": flux_controlnet,
    "Flux Kontext": flux_kontext,
    "Flux inpainting": flux_inpaint,
}
