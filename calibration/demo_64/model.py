"""The denoiser with its text encoders, as it is trained, and its tokenizers."""

from pathlib import Path

import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from torch import Tensor, nn
from transformers import CLIPTokenizer, T5Tokenizer

from ..demo.data import BACKGROUNDS
from ..demo.text import (
    T5_TOKENS,
    WIDTH,
    build_clip_encoder,
    build_clip_tokenizer,
    build_t5_encoder,
    build_t5_tokenizer,
    count_words,
)
from .motifs import caption, icons
from .vae import CHANNELS

LATENT = 16  # height and width of the latents; packing makes 8 x 8 image tokens


def load_tokenizers(folder: Path) -> tuple[CLIPTokenizer, T5Tokenizer]:
    """Build both tokenizers on the first call and keep them in `folder` (another build may differ)."""
    clip_folder, t5_folder = folder / "tokenizer", folder / "tokenizer_2"
    if not t5_folder.exists():
        words = count_words(caption(*icon, colour) for icon in icons() for colour in BACKGROUNDS)
        build_clip_tokenizer(words).save_pretrained(clip_folder)
        build_t5_tokenizer(words).save_pretrained(t5_folder)
    return CLIPTokenizer.from_pretrained(clip_folder), T5Tokenizer.from_pretrained(t5_folder)


def build_transformer() -> FluxTransformer2DModel:
    """Build a small FLUX transformer that starts as the identity (adaLN-zero)."""
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=4 * CHANNELS,
        num_layers=3,
        num_single_layers=6,
        attention_head_dim=32,
        num_attention_heads=6,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=False,
        axes_dims_rope=(4, 14, 14),
    )
    gates = [transformer.norm_out.linear, transformer.proj_out]
    for block in transformer.transformer_blocks:
        gates += [block.norm1.linear, block.norm1_context.linear]
    gates += [block.norm.linear for block in transformer.single_transformer_blocks]
    for linear in gates:
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
    return transformer


class TextToImage(nn.Module):
    """Everything that is trained by the flow-matching loss, under FluxPipeline's names."""

    def __init__(self, clip_tokenizer: CLIPTokenizer, t5_tokenizer: T5Tokenizer) -> None:
        super().__init__()
        self.text_encoder = build_clip_encoder(clip_tokenizer)
        self.text_encoder_2 = build_t5_encoder(t5_tokenizer)
        self.transformer = build_transformer()
        self.register_buffer("positions", positions(), persistent=False)

    def forward(self, packed: Tensor, sigma: Tensor, clip_ids: Tensor, t5_ids: Tensor) -> Tensor:
        """Predict the velocity as FluxPipeline would have it.

        The transformer's own forward would round the times to bfloat16 under autocast, that is to
        256 different ones above 0.5.

        Args:
            packed: Noisy latents, packed, with shape (batch, 64, 4 * CHANNELS).
            sigma: Noise levels with shape (batch,), 1 = noise.
            clip_ids: Token ids with shape (batch, CLIP_TOKENS).
            t5_ids: Token ids with shape (batch, T5_TOKENS), paddings attended to.

        Returns:
            Predicted `noise - clean`, with the shape of `packed`.
        """
        inner = self.transformer
        temb = inner.time_text_embed(1000 * sigma, self.text_encoder(clip_ids).pooler_output)
        text, image = inner.context_embedder(self.text_encoder_2(t5_ids)[0]), inner.x_embedder(packed)
        rotary = inner.pos_embed(self.positions)
        for block in [*inner.transformer_blocks, *inner.single_transformer_blocks]:
            text, image = block(hidden_states=image, encoder_hidden_states=text, temb=temb, image_rotary_emb=rotary)
        return inner.proj_out(inner.norm_out(image, temb))

    def loss(self, clean: Tensor, noise: Tensor, sigma: Tensor, clip_ids: Tensor, t5_ids: Tensor) -> Tensor:
        """Rectified-flow loss on packed, scaled latents with shape (batch, 64, 4 * CHANNELS)."""
        weight = sigma[:, None, None]
        predicted = self((1 - weight) * clean + weight * noise, sigma, clip_ids, t5_ids)
        return nn.functional.mse_loss(predicted.float(), noise - clean)


def positions() -> Tensor:
    """Positions of all tokens: zeros for the text, then time, row and column of the image tokens."""
    side = LATENT // 2
    image = FluxPipeline._prepare_latent_image_ids(1, side, side, torch.device("cpu"), torch.float32)
    return torch.cat([torch.zeros(T5_TOKENS, 3), image])


def pack(latents: Tensor) -> Tensor:
    """Pack latents with shape (batch, CHANNELS, 16, 16) into tokens with shape (batch, 64, 4 * CHANNELS)."""
    return FluxPipeline._pack_latents(latents, len(latents), CHANNELS, LATENT, LATENT)
