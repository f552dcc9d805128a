"""The denoiser with its text encoder, as it is trained: one module, one loss."""

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor, nn
from transformers import T5Tokenizer, UMT5Config, UMT5EncoderModel

from ..demo.data import BACKGROUNDS
from ..demo.text import WIDTH, build_t5_tokenizer, count_words
from .basis import CHANNELS
from .clips import MOTIONS, caption, names


def build_tokenizer() -> T5Tokenizer:
    """Build a tokenizer that knows the words of all captions."""
    captions = (caption(name, motion, colour) for name in names() for motion in MOTIONS for colour in BACKGROUNDS)
    return build_t5_tokenizer(count_words(captions))


def build_text_encoder(tokenizer: T5Tokenizer) -> UMT5EncoderModel:
    """Build the encoder whose token states the clip attends to."""
    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=len(tokenizer),
            d_model=WIDTH,
            d_kv=32,
            d_ff=2 * WIDTH,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def build_transformer() -> WanTransformer3DModel:
    """Build a small Wan transformer whose blocks start as the identity."""
    transformer = WanTransformer3DModel(
        num_attention_heads=6,
        attention_head_dim=32,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        text_dim=WIDTH,
        freq_dim=128,
        ffn_dim=576,
        num_layers=5,
        rope_max_seq_len=32,
    )
    closed = [transformer.proj_out, transformer.condition_embedder.time_proj]
    for block in transformer.blocks:
        closed.append(block.attn2.to_out[0])
        with torch.no_grad():
            block.scale_shift_table[:, [2, 5]] = 0  # the gates of attention and feed-forward
    for linear in closed:
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
    return transformer


class TextToVideo(nn.Module):
    """Everything that is trained by the flow-matching loss, under WanPipeline's names."""

    def __init__(self, tokenizer: T5Tokenizer) -> None:
        super().__init__()
        self.text_encoder = build_text_encoder(tokenizer)
        self.transformer = build_transformer()

    def forward(self, noisy: Tensor, sigma: Tensor, ids: Tensor) -> Tensor:
        """Predict the velocity as WanPipeline would call its modules.

        Args:
            noisy: Noisy latents with shape (batch, CHANNELS, 5, 8, 8).
            sigma: Noise levels with shape (batch,), 1 = noise.
            ids: Token ids with shape (batch, T5_TOKENS), padded with zeros.

        Returns:
            Predicted `noise - clean`, with the shape of `noisy`.
        """
        mask = ids != 0
        states = self.text_encoder(ids, mask).last_hidden_state
        return self.transformer(
            hidden_states=noisy,
            timestep=1000 * sigma,
            # The pipeline cuts off the padding and puts zeros in its place.
            encoder_hidden_states=states * mask[..., None],
            return_dict=False,
        )[0]

    def loss(self, latents: Tensor, noise: Tensor, sigma: Tensor, ids: Tensor) -> Tensor:
        """Rectified-flow loss on normalised latents with shape (batch, CHANNELS, 5, 8, 8)."""
        weight = sigma[:, None, None, None, None]
        predicted = self((1 - weight) * latents + weight * noise, sigma, ids)
        return nn.functional.mse_loss(predicted, noise - latents)
