"""The denoiser with its text encoders, as it is trained, and its tokenizers."""

from pathlib import Path

import torch
from diffusers import FluxPipeline
from torch import Tensor, nn
from transformers import CLIPTokenizer, T5Tokenizer

from ..demo import model as demo
from ..demo.data import BACKGROUNDS
from ..demo.model import LATENT
from ..demo.text import T5_TOKENS, kept_tokenizers
from .motifs import caption, icons
from .vae import CHANNELS

SIZE = {"in_channels": 4 * CHANNELS, "num_layers": 3, "num_single_layers": 6, "num_attention_heads": 6}


def load_tokenizers(folder: Path) -> tuple[CLIPTokenizer, T5Tokenizer]:
    """Build both tokenizers on the first call and keep them in `folder` (another build may differ)."""
    return kept_tokenizers(folder, lambda: [caption(*icon, colour) for icon in icons() for colour in BACKGROUNDS])


class TextToImage(demo.TextToImage):
    """The model of the 32 px demo with more channels, and a forward that can be trained under autocast."""

    def __init__(self, clip_tokenizer: CLIPTokenizer, t5_tokenizer: T5Tokenizer) -> None:
        super().__init__(clip_tokenizer, t5_tokenizer, SIZE)
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
