"""The denoiser with its text encoders, as it is trained: one module, one loss."""

import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from torch import nn
from transformers import CLIPTokenizer, T5Tokenizer

from .text import T5_TOKENS, WIDTH, build_clip_encoder, build_t5_encoder

LATENT = 16  # height and width of the latents; packing makes 8 x 8 image tokens
SHIPPED = {"num_layers": 3, "num_single_layers": 6, "num_attention_heads": 5}
SMALL = {"num_layers": 2, "num_single_layers": 3, "num_attention_heads": 3}


def build_transformer(size: dict[str, int]) -> FluxTransformer2DModel:
    """Build a FLUX transformer of a size, say SHIPPED or SMALL, that starts as the identity (adaLN-zero)."""
    fixed = {"patch_size": 1, "attention_head_dim": 32, "guidance_embeds": False, "axes_dims_rope": (4, 14, 14)}
    widths = {"in_channels": 16, "joint_attention_dim": WIDTH, "pooled_projection_dim": WIDTH}
    transformer = FluxTransformer2DModel(**{**fixed, **widths, **size})
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

    def __init__(
        self, clip_tokenizer: CLIPTokenizer, t5_tokenizer: T5Tokenizer, size: dict[str, int] = SHIPPED
    ) -> None:
        super().__init__()
        self.text_encoder = build_clip_encoder(clip_tokenizer)
        self.text_encoder_2 = build_t5_encoder(t5_tokenizer)
        self.transformer = build_transformer(size)

    def forward(
        self,
        packed: torch.Tensor,
        sigma: torch.Tensor,
        clip_ids: torch.Tensor,
        t5_ids: torch.Tensor,
    ) -> torch.Tensor:
        """Predict the velocity as FluxPipeline would call its modules.

        Args:
            packed: Noisy latents, packed, with shape (batch, 64, 16).
            sigma: Noise levels with shape (batch,), 1 = noise.
            clip_ids: Token ids with shape (batch, CLIP_TOKENS).
            t5_ids: Token ids with shape (batch, T5_TOKENS), paddings attended to.

        Returns:
            Predicted `noise - clean`, with the shape of `packed`.
        """
        side = LATENT // 2
        return self.transformer(
            hidden_states=packed,
            timestep=sigma,
            pooled_projections=self.text_encoder(clip_ids).pooler_output,
            encoder_hidden_states=self.text_encoder_2(t5_ids)[0],
            txt_ids=packed.new_zeros(T5_TOKENS, 3),
            img_ids=FluxPipeline._prepare_latent_image_ids(len(packed), side, side, packed.device, packed.dtype),
            return_dict=False,
        )[0]

    def loss(
        self,
        latents: torch.Tensor,
        noise: torch.Tensor,
        sigma: torch.Tensor,
        clip_ids: torch.Tensor,
        t5_ids: torch.Tensor,
    ) -> torch.Tensor:
        """Rectified-flow loss on scaled latents with shape (batch, 4, 16, 16)."""
        weight = sigma[:, None, None, None]
        noisy = pack((1 - weight) * latents + weight * noise)
        predicted = self(noisy, sigma, clip_ids, t5_ids)
        return nn.functional.mse_loss(predicted, pack(noise - latents))


def pack(latents: torch.Tensor) -> torch.Tensor:
    """Pack latents with shape (batch, 4, 16, 16) into tokens with shape (batch, 64, 16)."""
    return FluxPipeline._pack_latents(latents, len(latents), 4, LATENT, LATENT)
