"""The LTX family: video, and video with sound."""

from __future__ import annotations

import diffusers
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.ltx2 import LTX2TextConnectors

from .setup import Setup, noise, ones, prompts

EULER = FlowMatchEulerDiscreteScheduler
CLIP = {"height": 64, "width": 64, "num_frames": 5}


def ltx() -> Setup:
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=16,
        cross_attention_dim=32,
        num_layers=1,
        caption_channels=16,
    )
    pipe = diffusers.LTXPipeline(EULER(use_dynamic_shifting=True), None, None, None, transformer)
    call = CLIP | {
        "height": 128,
        "width": 128,
        "num_frames": 9,
        "negative_prompt_embeds": noise(9, 1, 5, 16),
        "negative_prompt_attention_mask": ones(5),
    }
    return Setup(pipe, call, prompts(prompt_embeds=(5, 16), prompt_attention_mask=(5,)))


def ltx2() -> Setup:
    transformer = diffusers.LTX2VideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        audio_in_channels=32,
        audio_out_channels=32,
        audio_num_attention_heads=2,
        audio_attention_head_dim=4,
        audio_cross_attention_dim=8,
        num_layers=1,
        caption_channels=16,
        rope_double_precision=False,
        rope_type="split",
    )
    stream = {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "num_layers": 1,
        "num_learnable_registers": None,
    }
    connectors = LTX2TextConnectors(
        caption_channels=16,
        text_proj_in_factor=2,
        connector_rope_base_seq_len=32,
        rope_double_precision=False,
        causal_temporal_positioning=False,
        rope_type="split",
        **{f"{kind}_connector_{name}": value for kind in ("video", "audio") for name, value in stream.items()},
    )
    audio_vae = diffusers.AutoencoderKLLTX2Audio(
        base_channels=32,
        ch_mult=(1,),
        num_res_blocks=1,
        resolution=32,
        mid_block_add_attention=False,
        mel_bins=16,
        latent_channels=8,
    )
    vae = diffusers.AutoencoderKLLTX2Video(
        latent_channels=4,
        block_out_channels=(8,),
        decoder_block_out_channels=(8,),
        layers_per_block=(1,),
        decoder_layers_per_block=(1, 1),
        spatio_temporal_scaling=(True,),
        decoder_spatio_temporal_scaling=(True,),
        decoder_inject_noise=(False, False),
        downsample_type=("spatial",),
        upsample_residual=(False,),
        upsample_factor=(1,),
        patch_size=1,
    )
    pipe = diffusers.LTX2Pipeline(
        scheduler=EULER(),
        connectors=connectors,
        transformer=transformer,
        audio_vae=audio_vae,
        vae=vae,
        **dict.fromkeys(("text_encoder", "tokenizer", "vocoder")),
    )
    call = CLIP | {
        "height": 32,
        "width": 32,
        "negative_prompt_embeds": noise(9, 1, 5, 32),
        "negative_prompt_attention_mask": ones(5),
        "stg_scale": 0.0,
        "audio_stg_scale": 0.0,
        "spatio_temporal_guidance_blocks": None,
        "use_cross_timestep": False,
        "modality_scale": 1.0,
        "audio_modality_scale": 1.0,
    }
    return Setup(pipe, call, prompts(prompt_embeds=(5, 32), prompt_attention_mask=(5,)))


LTX = {"LTX-Video": ltx, "LTX-2": ltx2}
