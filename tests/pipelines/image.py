"""Text-to-image pipelines with transformers."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from .setup import Setup, autoencoder, noise, ones, prompts

EULER = FlowMatchEulerDiscreteScheduler


def flux2_transformer() -> Any:
    return diffusers.Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
    )


def flux2() -> Setup:
    pipe = diffusers.Flux2Pipeline(EULER(use_dynamic_shifting=True), None, None, None, flux2_transformer())
    return Setup(pipe, {"height": 64, "width": 64}, prompts(prompt_embeds=(5, 16)))


def flux2_klein() -> Setup:
    vae = diffusers.AutoencoderKLFlux2(
        block_out_channels=(4,) * 4, down_block_types=("DownEncoderBlock2D",) * 4, norm_num_groups=2,
        up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=1, mid_block_add_attention=False, latent_channels=4,
    )  # fmt: skip
    pipe = diffusers.Flux2KleinPipeline(EULER(use_dynamic_shifting=True), vae, None, None, flux2_transformer())
    call = {"height": 64, "width": 64, "negative_prompt_embeds": noise(9, 1, 5, 16)}
    return Setup(pipe, call, prompts(prompt_embeds=(5, 16)), branches=2)


def sd3() -> Setup:
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=16,
        pooled_projection_dim=16,
        out_channels=4,
        pos_embed_max_size=8,
    )
    parts = dict.fromkeys(f"{kind}{n}" for kind in ("text_encoder", "tokenizer") for n in ("", "_2", "_3"))
    pipe = diffusers.StableDiffusion3Pipeline(transformer, EULER(shift=3.0), autoencoder(), **parts)
    call = {
        "height": 16,
        "width": 16,
        "guidance_scale": 4.0,
        "negative_prompt_embeds": noise(9, 1, 5, 16),
        "negative_pooled_prompt_embeds": noise(8, 1, 16),
    }
    return Setup(pipe, call, prompts(prompt_embeds=(5, 16), pooled_prompt_embeds=(16,)), branches=1)


def pixart_sigma() -> Setup:
    transformer = diffusers.PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        cross_attention_dim=16,
        sample_size=8,
        caption_channels=16,
        use_additional_conditions=False,
    )
    pipe = diffusers.PixArtSigmaPipeline(
        None, None, autoencoder(), transformer, diffusers.DPMSolverMultistepScheduler()
    )
    call = {
        "height": 16,
        "width": 16,
        "use_resolution_binning": False,
        "negative_prompt": None,
        "negative_prompt_embeds": noise(9, 1, 5, 16),
        "negative_prompt_attention_mask": ones(5),
    }
    return Setup(pipe, call, prompts(prompt_embeds=(5, 16), prompt_attention_mask=(5,)), branches=1)


def sana() -> Setup:
    transformer = diffusers.SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=16,
        sample_size=8,
    )
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    pipe = diffusers.SanaPipeline(None, None, None, transformer, scheduler)
    call = {
        "height": 256,
        "width": 256,
        "use_resolution_binning": False,
        "negative_prompt": None,
        "negative_prompt_embeds": noise(9, 1, 5, 16),
        "negative_prompt_attention_mask": ones(5),
    }
    return Setup(pipe, call, prompts(prompt_embeds=(5, 16), prompt_attention_mask=(5,)), branches=1)


def qwen_image() -> Setup:
    transformer = diffusers.QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 6, 6),
    )
    pipe = diffusers.QwenImagePipeline(EULER(use_dynamic_shifting=True), None, None, None, transformer)
    call = {
        "height": 64,
        "width": 64,
        "true_cfg_scale": 4.0,
        "negative_prompt_embeds": noise(9, 1, 5, 16),
        "negative_prompt_embeds_mask": ones(5),
    }
    return Setup(pipe, call, prompts(prompt_embeds=(5, 16), prompt_embeds_mask=(5,)), branches=2)


def z_image() -> Setup:
    transformer = diffusers.ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[8, 4, 4],
        axes_lens=[64, 16, 16],
    )
    for token in (transformer.x_pad_token, transformer.cap_pad_token):
        torch.nn.init.normal_(token)  # left as found in memory by the model
    pipe = diffusers.ZImagePipeline(EULER(use_dynamic_shifting=True), None, None, None, transformer)
    rows = [{name: [value[0] for value in row.values()] for name in row} for row in prompts(prompt_embeds=(5, 16))]
    call = {"height": 64, "width": 64, "negative_prompt_embeds": [noise(9, 5, 16)], "guidance_scale": 3.0}
    return Setup(pipe, call, rows)


def lumina2() -> Setup:
    transformer = diffusers.Lumina2Transformer2DModel(
        sample_size=8,
        in_channels=4,
        hidden_size=24,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=1,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=(8, 8, 8),
        axes_lens=(64, 16, 16),
        cap_feat_dim=16,
    )
    pipe = diffusers.Lumina2Pipeline(transformer, EULER(shift=6.0), None, None, None)
    call = {
        "height": 64,
        "width": 64,
        "negative_prompt_embeds": noise(9, 1, 5, 16),
        "negative_prompt_attention_mask": ones(5),
    }
    return Setup(pipe, call, prompts(prompt_embeds=(5, 16), prompt_attention_mask=(5,)), branches=2)


def chroma() -> Setup:
    transformer = diffusers.ChromaTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 6, 6),
        approximator_num_channels=8,
        approximator_hidden_dim=16,
        approximator_layers=1,
    )
    pipe = diffusers.ChromaPipeline(EULER(), None, None, None, transformer)
    call = {
        "height": 64,
        "width": 64,
        "negative_prompt_embeds": noise(9, 1, 5, 16),
        "negative_prompt_attention_mask": torch.ones(1, 5, dtype=torch.bool),
    }
    rows = [
        row | {"prompt_attention_mask": torch.ones(1, 5, dtype=torch.bool)} for row in prompts(prompt_embeds=(5, 16))
    ]
    return Setup(pipe, call, rows, branches=2)


def cogview4() -> Setup:
    transformer = diffusers.CogView4Transformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        text_embed_dim=16,
        time_embed_dim=8,
        condition_dim=4,
        sample_size=8,
        rope_axes_dim=(8, 8),
    )
    scheduler = EULER(base_shift=0.25, max_shift=0.75, use_dynamic_shifting=True, time_shift_type="linear")
    pipe = diffusers.CogView4Pipeline(None, None, None, transformer, scheduler)
    call = {"height": 64, "width": 64, "negative_prompt_embeds": noise(9, 1, 16, 16)}
    return Setup(pipe, call, prompts(prompt_embeds=(16, 16)), branches=2)


def dit() -> Setup:
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        sample_size=8,
        num_embeds_ada_norm=1000,
    )
    pipe = diffusers.DiTPipeline(transformer, autoencoder(), diffusers.DDIMScheduler(clip_sample=False))
    return Setup(pipe, {}, [{"class_labels": [label]} for label in (3, 7, 11)])


IMAGE = {
    "Flux 2": flux2,
    "Flux 2 klein": flux2_klein,
    "Stable Diffusion 3": sd3,
    "PixArt-Sigma": pixart_sigma,
    "Sana": sana,
    "Qwen-Image": qwen_image,
    "Z-Image": z_image,
    "Lumina 2": lumina2,
    "Chroma": chroma,
    "CogView 4": cogview4,
    "DiT": dit,
}
