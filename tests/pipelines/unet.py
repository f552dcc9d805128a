"""Pipelines with a U-Net."""

from __future__ import annotations

from typing import Any

import diffusers
import torch

from .setup import Setup, autoencoder, noise, prompts

SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
BASE = {
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "sample_size": 8,
    "norm_num_groups": 4,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "cross_attention_dim": 16,
    "attention_head_dim": 4,
}


def sd_parts(channels: int = 4) -> dict[str, Any]:
    """Returns the components of a Stable Diffusion pipeline."""
    names = ("text_encoder", "tokenizer", "safety_checker", "feature_extractor", "image_encoder")
    unet = diffusers.UNet2DConditionModel(
        **BASE, in_channels=channels, out_channels=4, up_block_types=("CrossAttnUpBlock2D", "UpBlock2D")
    )
    scheduler = diffusers.DDIMScheduler(**SCHEDULE, clip_sample=False, steps_offset=1)
    return {
        "vae": autoencoder(),
        "unet": unet,
        "scheduler": scheduler,
        **dict.fromkeys(names),
        "requires_safety_checker": False,
    }


def sd_call() -> dict[str, Any]:
    """Returns how it is called."""
    return {"height": 16, "width": 16, "negative_prompt_embeds": noise(9, 1, 5, 16)}


def sd15() -> Setup:
    pipe = diffusers.StableDiffusionPipeline(**sd_parts())
    return Setup(pipe, sd_call(), prompts(prompt_embeds=(5, 16)))


def sd15_img2img() -> Setup:
    pipe = diffusers.StableDiffusionImg2ImgPipeline(**sd_parts())
    call = {
        "negative_prompt_embeds": noise(9, 1, 5, 16),
        "image": noise(7, 1, 3, 16, 16).sigmoid(),
        "strength": 0.7,
    }
    return Setup(pipe, call, prompts(prompt_embeds=(5, 16)), steps=9)


def sd15_inpaint() -> Setup:
    pipe = diffusers.StableDiffusionInpaintPipeline(**sd_parts(9))
    call = sd_call() | {
        "image": noise(7, 1, 3, 16, 16).sigmoid(),
        "mask_image": (noise(6, 1, 1, 16, 16) > 0).float(),
    }
    return Setup(pipe, call, prompts(prompt_embeds=(5, 16)))


def sd15_controlnet() -> Setup:
    controlnet = diffusers.ControlNetModel(
        **{k: v for k, v in BASE.items() if k != "sample_size"}, conditioning_embedding_out_channels=(4, 8)
    )
    blocks = [*controlnet.controlnet_down_blocks, controlnet.controlnet_mid_block]
    for layer in [controlnet.controlnet_cond_embedding.conv_out, *blocks]:
        torch.nn.init.normal_(layer.weight, std=0.1)
    pipe = diffusers.StableDiffusionControlNetPipeline(**sd_parts(), controlnet=controlnet)
    call = sd_call() | {"image": noise(7, 1, 3, 16, 16).sigmoid()}
    return Setup(pipe, call, prompts(prompt_embeds=(5, 16)))


def pix2pix() -> Setup:
    pipe = diffusers.StableDiffusionInstructPix2PixPipeline(**sd_parts(8))
    call = {
        "negative_prompt_embeds": noise(9, 1, 5, 16),
        "image": noise(7, 1, 3, 16, 16).sigmoid(),
        "image_guidance_scale": 1.5,
    }
    return Setup(pipe, call, prompts(prompt_embeds=(5, 16)))


def sdxl() -> Setup:
    unet = diffusers.UNet2DConditionModel(
        **BASE,
        in_channels=4,
        out_channels=4,
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        use_linear_projection=True,
        projection_class_embeddings_input_dim=6 * 4 + 16,
    )
    parts = dict.fromkeys(["text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"])
    scheduler = diffusers.EulerDiscreteScheduler(**SCHEDULE, timestep_spacing="leading", steps_offset=1)
    pipe = diffusers.StableDiffusionXLPipeline(autoencoder(), **parts, unet=unet, scheduler=scheduler)
    call = sd_call() | {"negative_pooled_prompt_embeds": noise(8, 1, 16)}
    return Setup(pipe, call, prompts(prompt_embeds=(5, 16), pooled_prompt_embeds=(16,)))


UNET = {
    "Stable Diffusion 1.5": sd15,
    "Stable Diffusion image-to-image": sd15_img2img,
    "Stable Diffusion inpainting": sd15_inpaint,
    "Stable Diffusion ControlNet": sd15_controlnet,
    "InstructPix2Pix": pix2pix,
    "SDXL": sdxl,
}
