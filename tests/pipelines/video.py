"""Video pipelines."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from diffusers.pipelines.ltx2 import LTX2TextConnectors

from .setup import Setup, noise, prompts

EULER = FlowMatchEulerDiscreteScheduler
CLIP = {"height": 64, "width": 64, "num_frames": 5}


def ones(*shape: int) -> torch.Tensor:
    """Returns an attention mask that hides nothing."""
    return torch.ones(1, *shape, dtype=torch.long)


def wan_transformer() -> Any:
    """Returns a denoiser of Wan."""
    return diffusers.WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16, freq_dim=16,
        ffn_dim=32, num_layers=1, rope_max_seq_len=32,
    )  # fmt: skip


def unipc() -> UniPCMultistepScheduler:
    """Returns the scheduler Wan ships with."""
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)


def wan21() -> Setup:
    pipe = diffusers.WanPipeline(None, None, None, unipc(), wan_transformer())
    call = CLIP | {"negative_prompt_embeds": noise(9, 1, 5, 16)}
    return Setup(pipe, call, prompts(prompt_embeds=(5, 16)), branches=2)


def wan22() -> Setup:
    pipe = diffusers.WanPipeline(
        None, None, None, unipc(), wan_transformer(), wan_transformer(), boundary_ratio=0.8
    )
    call = CLIP | {
        "negative_prompt_embeds": noise(9, 1, 5, 16), "guidance_scale": 4.0, "guidance_scale_2": 3.0,
    }  # fmt: skip
    return Setup(pipe, call, prompts(prompt_embeds=(5, 16)), branches=2, steps=8)


def hunyuan_video() -> Setup:
    transformer = diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=12, num_layers=1,
        num_single_layers=1, num_refiner_layers=1, patch_size=1, text_embed_dim=16, pooled_projection_dim=16,
        rope_axes_dim=(4, 4, 4),
    )  # fmt: skip
    names = ("text_encoder", "tokenizer", "vae", "text_encoder_2", "tokenizer_2")
    pipe = diffusers.HunyuanVideoPipeline(
        transformer=transformer, scheduler=EULER(shift=7.0), **dict.fromkeys(names)
    )
    rows = prompts(prompt_embeds=(5, 16), pooled_prompt_embeds=(16,), prompt_attention_mask=(5,))
    return Setup(pipe, CLIP | {"height": 32, "width": 32}, rows)


def ltx() -> Setup:
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, num_attention_heads=2, attention_head_dim=16, cross_attention_dim=32,
        num_layers=1, caption_channels=16,
    )  # fmt: skip
    pipe = diffusers.LTXPipeline(EULER(use_dynamic_shifting=True), None, None, None, transformer)
    call = CLIP | {
        "height": 128, "width": 128, "num_frames": 9, "negative_prompt_embeds": noise(9, 1, 5, 16),
        "negative_prompt_attention_mask": ones(5),
    }  # fmt: skip
    return Setup(pipe, call, prompts(prompt_embeds=(5, 16), prompt_attention_mask=(5,)))


def ltx2() -> Setup:
    transformer = diffusers.LTX2VideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, cross_attention_dim=16,
        audio_in_channels=32, audio_out_channels=32, audio_num_attention_heads=2, audio_attention_head_dim=4,
        audio_cross_attention_dim=8, num_layers=1, caption_channels=16, rope_double_precision=False,
        rope_type="split",
    )  # fmt: skip
    stream = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1, "num_learnable_registers": None}
    connectors = LTX2TextConnectors(
        caption_channels=16, text_proj_in_factor=2, connector_rope_base_seq_len=32, rope_double_precision=False,
        causal_temporal_positioning=False, rope_type="split",
        **{f"{kind}_connector_{name}": value for kind in ("video", "audio") for name, value in stream.items()},
    )  # fmt: skip
    audio_vae = diffusers.AutoencoderKLLTX2Audio(
        base_channels=32, ch_mult=(1,), num_res_blocks=1, resolution=32, mid_block_add_attention=False, mel_bins=16,
        latent_channels=8,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLLTX2Video(
        latent_channels=4, block_out_channels=(8,), decoder_block_out_channels=(8,), layers_per_block=(1,),
        decoder_layers_per_block=(1, 1), spatio_temporal_scaling=(True,), decoder_spatio_temporal_scaling=(True,),
        decoder_inject_noise=(False, False), downsample_type=("spatial",), upsample_residual=(False,),
        upsample_factor=(1,), patch_size=1,
    )  # fmt: skip
    pipe = diffusers.LTX2Pipeline(
        scheduler=EULER(), connectors=connectors, transformer=transformer, audio_vae=audio_vae, vae=vae,
        **dict.fromkeys(("text_encoder", "tokenizer", "vocoder")),
    )  # fmt: skip
    call = CLIP | {
        "height": 32, "width": 32, "negative_prompt_embeds": noise(9, 1, 5, 32),
        "negative_prompt_attention_mask": ones(5), "stg_scale": 0.0, "audio_stg_scale": 0.0, "spatio_temporal_guidance_blocks": None,
        "use_cross_timestep": False, "modality_scale": 1.0, "audio_modality_scale": 1.0,
    }  # fmt: skip
    return Setup(pipe, call, prompts(prompt_embeds=(5, 32), prompt_attention_mask=(5,)))


def cogvideox() -> Setup:
    transformer = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, time_embed_dim=8,
        text_embed_dim=16, num_layers=1, sample_width=8, sample_height=8, sample_frames=9, max_text_seq_length=5,
    )  # fmt: skip
    scheduler = diffusers.CogVideoXDPMScheduler()
    pipe = diffusers.CogVideoXPipeline(None, None, None, transformer, scheduler)
    call = {"height": 64, "width": 64, "num_frames": 9, "negative_prompt_embeds": noise(9, 1, 5, 16)}
    return Setup(pipe, call, prompts(prompt_embeds=(5, 16)))


def mochi() -> Setup:
    transformer = diffusers.MochiTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, num_layers=1, pooled_projection_dim=16, in_channels=4,
        text_embed_dim=16, time_embed_dim=8,
    )  # fmt: skip
    pipe = diffusers.MochiPipeline(EULER(invert_sigmas=True), None, None, None, transformer)
    call = {
        "height": 64, "width": 64, "num_frames": 7, "negative_prompt_embeds": noise(9, 1, 5, 16),
        "negative_prompt_attention_mask": ones(5),
    }  # fmt: skip
    return Setup(pipe, call, prompts(prompt_embeds=(5, 16), prompt_attention_mask=(5,)))


VIDEO = {
    "Wan 2.1": wan21,
    "Wan 2.2": wan22,
    "HunyuanVideo": hunyuan_video,
    "LTX-Video": ltx,
    "LTX-2": ltx2,
    "CogVideoX": cogvideox,
    "Mochi": mochi,
}
