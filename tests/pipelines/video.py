"""Video pipelines."""

from __future__ import annotations

from typing import Any

import diffusers
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from .setup import Setup, noise, ones, prompts

EULER = FlowMatchEulerDiscreteScheduler
CLIP = {"height": 64, "width": 64, "num_frames": 5}


def wan_transformer() -> Any:
    """Returns a denoiser of Wan."""
    return diffusers.WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=16,
        ffn_dim=32,
        num_layers=1,
        rope_max_seq_len=32,
    )


def unipc() -> UniPCMultistepScheduler:
    """Returns the scheduler Wan ships with."""
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)


def wan21() -> Setup:
    pipe = diffusers.WanPipeline(None, None, None, unipc(), wan_transformer())
    call = CLIP | {"negative_prompt_embeds": noise(9, 1, 5, 16)}
    return Setup(pipe, call, prompts(prompt_embeds=(5, 16)), branches=2)


def wan22() -> Setup:
    pipe = diffusers.WanPipeline(None, None, None, unipc(), wan_transformer(), wan_transformer(), boundary_ratio=0.8)
    call = CLIP | {
        "negative_prompt_embeds": noise(9, 1, 5, 16),
        "guidance_scale": 4.0,
        "guidance_scale_2": 3.0,
    }
    return Setup(pipe, call, prompts(prompt_embeds=(5, 16)), branches=2, steps=8)


def hunyuan_video() -> Setup:
    transformer = diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=1,
        text_embed_dim=16,
        pooled_projection_dim=16,
        rope_axes_dim=(4, 4, 4),
    )
    names = ("text_encoder", "tokenizer", "vae", "text_encoder_2", "tokenizer_2")
    pipe = diffusers.HunyuanVideoPipeline(transformer=transformer, scheduler=EULER(shift=7.0), **dict.fromkeys(names))
    rows = prompts(prompt_embeds=(5, 16), pooled_prompt_embeds=(16,), prompt_attention_mask=(5,))
    return Setup(pipe, CLIP | {"height": 32, "width": 32}, rows)


def cogvideox() -> Setup:
    transformer = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=16,
        num_layers=1,
        sample_width=8,
        sample_height=8,
        sample_frames=9,
        max_text_seq_length=5,
    )
    scheduler = diffusers.CogVideoXDPMScheduler()
    pipe = diffusers.CogVideoXPipeline(None, None, None, transformer, scheduler)
    call = {"height": 64, "width": 64, "num_frames": 9, "negative_prompt_embeds": noise(9, 1, 5, 16)}
    return Setup(pipe, call, prompts(prompt_embeds=(5, 16)))


def mochi() -> Setup:
    transformer = diffusers.MochiTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        pooled_projection_dim=16,
        in_channels=4,
        text_embed_dim=16,
        time_embed_dim=8,
    )
    pipe = diffusers.MochiPipeline(EULER(invert_sigmas=True), None, None, None, transformer)
    call = {
        "height": 64,
        "width": 64,
        "num_frames": 7,
        "negative_prompt_embeds": noise(9, 1, 5, 16),
        "negative_prompt_attention_mask": ones(5),
    }
    return Setup(pipe, call, prompts(prompt_embeds=(5, 16), prompt_attention_mask=(5,)))


VIDEO = {
    "Wan 2.1": wan21,
    "Wan 2.2": wan22,
    "HunyuanVideo": hunyuan_video,
    "CogVideoX": cogvideox,
    "Mochi": mochi,
}
