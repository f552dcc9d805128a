"""The demo model as MODEL, CLIP and VAE, so that the nodes can be tried where nothing was downloaded."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from adaptcache.presets.preset import Preset

NAMES = ("emoji-flux", "emoji-flux-32")  # presets whose weights ship with adaptcache


class Clip:
    """The text encoders of a pipeline, as CLIP Text Encode sees them."""

    def __init__(self, pipe: Any, length: int) -> None:
        self.pipe, self.length = pipe, length

    def tokenize(self, text: str, **_: Any) -> str:
        return text

    @torch.no_grad()
    def encode_from_tokens_scheduled(self, text: str, **_: Any) -> list[Any]:
        embeds, pooled, _ids = self.pipe.encode_prompt(text, text, max_sequence_length=self.length)
        return [[embeds, {"pooled_output": pooled}]]


class Vae:
    """The autoencoder of a pipeline, as VAE Decode and VAE Encode see it. Images have shape (B, H, W, 3)."""

    def __init__(self, pipe: Any) -> None:
        self.vae = pipe.vae

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        made: Tensor = self.vae.decode(latents.to(self.vae.device)).sample
        return (made / 2 + 0.5).clamp(0, 1).movedim(1, -1).cpu()

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        latents: Tensor = self.vae.encode(
            images[..., :3].movedim(-1, 1).to(self.vae.device) * 2 - 1
        ).latent_dist.mode()
        return latents.cpu()


def model_of(pipe: Any) -> Any:
    """Returns the transformer of a small FLUX pipeline of diffusers as a MODEL: ComfyUI's class, the same weights."""
    import comfy.latent_formats
    import comfy.model_base
    import comfy.model_management
    import comfy.model_patcher
    import comfy.supported_models
    import comfy.utils

    own, vae = pipe.transformer.config, pipe.vae.config

    class Latents(comfy.latent_formats.LatentFormat):  # type: ignore[misc]
        latent_channels = vae.latent_channels

        def process_in(self, x: Tensor) -> Tensor:
            return (x - vae.shift_factor) * vae.scaling_factor

        def process_out(self, x: Tensor) -> Tensor:
            return x / vae.scaling_factor + vae.shift_factor

    heads = own.num_attention_heads
    unet = {
        "image_model": "flux", "in_channels": own.in_channels // 4, "out_channels": own.in_channels // 4,
        "vec_in_dim": own.pooled_projection_dim, "context_in_dim": own.joint_attention_dim,
        "hidden_size": heads * own.attention_head_dim, "mlp_ratio": 4.0, "num_heads": heads, "depth": own.num_layers,
        "depth_single_blocks": own.num_single_layers, "axes_dim": list(own.axes_dims_rope), "theta": 10000,
        "patch_size": 2, "qkv_bias": True, "guidance_embed": own.guidance_embeds, "txt_ids_dims": [],
        "dtype": torch.float32,
    }  # fmt: skip
    config = comfy.supported_models.FluxSchnell(unet)
    config.sampling_settings, config.latent_format = {"shift": 0.0}, Latents()
    model = comfy.model_base.Flux(config, device=torch.device("cpu"))
    there, names = model.diffusion_model.state_dict(), comfy.utils.flux_to_diffusers(unet)
    for name, value in pipe.transformer.state_dict().items():
        target = names[name]
        where, offset, change = (target, None, None) if isinstance(target, str) else (*target, None)[:3]
        place = there[where] if offset is None else there[where].narrow(*offset)
        place.copy_(change(value) if change else value)
    management = comfy.model_management
    return comfy.model_patcher.ModelPatcher(model, management.get_torch_device(), management.unet_offload_device())


class DemoModel:
    """Loads a demo model of adaptcache."""

    DESCRIPTION = "A small model that comes with adaptcache, to try the nodes without a download: icons, on a CPU too."
    CATEGORY, FUNCTION = "adaptcache", "load"
    RETURN_TYPES = ("MODEL", "CLIP", "VAE", "LATENT")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        tip = "emoji-flux: icons of 64 x 64 pixels; emoji-flux-32: emoji of 32 x 32."
        return {"required": {"name": (list(NAMES), {"tooltip": tip})}}

    def load(self, name: str) -> tuple[Any, Any, Any, dict[str, Tensor]]:
        preset = Preset.load(name)
        pipe = preset.load_pipeline("cpu")
        side = preset.call["height"] // pipe.vae_scale_factor
        latent = torch.zeros(1, pipe.vae.config.latent_channels, side, side)
        return model_of(pipe), Clip(pipe, preset.call["max_sequence_length"]), Vae(pipe), {"samples": latent}
