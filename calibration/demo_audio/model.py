"""The denoiser with its text encoder, as it is trained: one module, one loss."""

import math

import torch
from diffusers import StableAudioDiTModel
from diffusers.models.embeddings import get_1d_rotary_pos_embed
from diffusers.pipelines.stable_audio import StableAudioProjectionModel
from torch import Tensor, nn
from transformers import T5Tokenizer

from ..demo.text import WIDTH, build_t5_encoder, build_t5_tokenizer, count_words
from .sounds import INSTRUMENTS, LENGTH, NOTES, OCTAVES, WAYS, caption
from .vae import CHANNELS

TOKENS = LENGTH // 64  # latents of a sound
HEAD = 32  # numbers of an attention head


def build_tokenizer() -> T5Tokenizer:
    """Build a tokenizer that knows the words of all captions."""
    captions = (
        caption(instrument, octave, note, way)
        for instrument in INSTRUMENTS
        for octave in OCTAVES
        for note in NOTES
        for way in WAYS
    )
    return build_t5_tokenizer(count_words(captions))


def build_transformer() -> StableAudioDiTModel:
    """Build a small transformer of Stable Audio whose blocks start as the identity."""
    transformer = StableAudioDiTModel(
        sample_size=TOKENS,
        in_channels=CHANNELS,
        num_layers=5,
        attention_head_dim=HEAD,
        num_attention_heads=6,
        num_key_value_attention_heads=3,
        out_channels=CHANNELS,
        cross_attention_dim=WIDTH,
        time_proj_dim=256,
        global_states_input_dim=2 * WIDTH,
        cross_attention_input_dim=WIDTH,
    )
    closed = [transformer.proj_out]
    for block in transformer.transformer_blocks:
        closed += [block.attn1.to_out[0], block.attn2.to_out[0], block.ff.net[-1]]
    for linear in closed:
        nn.init.zeros_(linear.weight)
    return transformer


class TextToSound(nn.Module):
    """Everything that is trained to predict velocities, under StableAudioPipeline's names."""

    def __init__(self, tokenizer: T5Tokenizer) -> None:
        super().__init__()
        self.text_encoder = build_t5_encoder(tokenizer)
        self.projection_model = StableAudioProjectionModel(WIDTH, WIDTH, min_value=0, max_value=1)
        self.transformer = build_transformer()
        self.rotary = get_1d_rotary_pos_embed(HEAD // 2, TOKENS + 1, use_real=True, repeat_interleave_real=False)

    def forward(self, noisy: Tensor, time: Tensor, ids: Tensor, dropped: Tensor) -> Tensor:
        """Predict the velocity as StableAudioPipeline would call its modules.

        Args:
            noisy: Noisy latents of variance 1, with shape (batch, CHANNELS, TOKENS).
            time: Noise levels with shape (batch,), 1 = noise.
            ids: Token ids with shape (batch, T5_TOKENS), padded with zeros.
            dropped: Where the conditions are zeros, as guidance has it, with shape (batch,).

        Returns:
            The predicted velocity, with the shape of `noisy`.
        """
        mask = ids != 0
        states = self.text_encoder(ids, attention_mask=mask)[0]
        states = self.projection_model(text_hidden_states=states).text_hidden_states * mask[..., None]
        whole = self.projection_model(
            start_seconds=torch.zeros(len(ids)), end_seconds=torch.ones(len(ids))
        )  # every sound is a second long
        start, end = whole.seconds_start_hidden_states, whole.seconds_end_hidden_states
        return self.transformer(
            hidden_states=noisy,
            timestep=time,
            encoder_hidden_states=torch.cat([states, start, end], 1) * ~dropped[:, None, None],
            global_hidden_states=torch.cat([start, end], dim=2),
            rotary_embedding=self.rotary,
            return_dict=False,
        )[0]

    def loss(self, latents: Tensor, noise: Tensor, time: Tensor, ids: Tensor, dropped: Tensor) -> Tensor:
        """Velocity loss on latents with shape (batch, CHANNELS, TOKENS)."""
        angle = (time * math.pi / 2)[:, None, None]
        predicted = self(angle.cos() * latents + angle.sin() * noise, time, ids, dropped)
        return nn.functional.mse_loss(predicted, angle.cos() * noise - angle.sin() * latents)
