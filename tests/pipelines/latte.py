"""Latte: the one pipeline here with attention in space, in time and to the text."""

from __future__ import annotations

import diffusers

from .setup import Setup, noise, prompts

__all__ = ["latte"]


def latte() -> Setup:
    """Returns a LattePipeline of two blocks in space and two in time, with guidance in a batch."""
    transformer = diffusers.LatteTransformer3DModel(
        sample_size=8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=16,
        in_channels=4,
        cross_attention_dim=16,
        out_channels=8,
        attention_bias=True,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
        video_length=1,
    )
    pipe = diffusers.LattePipeline(None, None, None, transformer.eval(), diffusers.DDIMScheduler())
    call = {
        "prompt": None,
        "negative_prompt": None,
        "negative_prompt_embeds": noise(9, 1, 5, 16),
        "height": 64,
        "width": 64,
        "video_length": 2,
        "clean_caption": False,
    }
    return Setup(pipe, call, prompts(prompt_embeds=(5, 16)))
