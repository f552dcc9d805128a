"""Modular pipelines: their denoising blocks with tiny parts, given embeddings for texts and latents for pictures."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import diffusers
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from .image import flux2_transformer
from .ltx import ltx2
from .setup import PROMPTS, Setup, noise, ones, prompts
from .video import unipc

EULER = FlowMatchEulerDiscreteScheduler
SIZE = {"height": 64, "width": 64}
CLIP = SIZE | {"num_frames": 5}
HELIOS = {"num_frames": 9, "history_sizes": [4, 2, 1], "num_latent_frames_per_chunk": 3}
SHIFTED = {"use_dynamic_shifting": True}


def denoising(name: str, **parts: Any) -> Any:
    """Returns a modular pipeline of a class of diffusers that has its denoising block alone."""
    kind = getattr(diffusers, name)
    blocks = getattr(diffusers, kind.default_blocks_name)()
    for other in set(blocks.sub_blocks) - {"denoise"}:
        blocks.sub_blocks.pop(other)
    pipe = kind(blocks=blocks)
    pipe.update_components(**parts)
    return pipe


def qwen_rows() -> list[dict[str, Any]]:
    return prompts(prompt_embeds=(5, 16), prompt_embeds_mask=(5,))


def negative(*shape: int, mask: bool = True) -> dict[str, Any]:
    """Returns the embeddings of a negative prompt."""
    more = {"negative_prompt_embeds_mask": ones(shape[0])} if mask else {}
    return {"negative_prompt_embeds": noise(9, 1, *shape), **more}


def flux2() -> Setup:
    pipe = denoising("Flux2ModularPipeline", transformer=flux2_transformer(), scheduler=EULER(**SHIFTED))
    return Setup(pipe, SIZE, prompts(prompt_embeds=(5, 16)))


def flux2_klein() -> Setup:
    pipe = denoising("Flux2KleinBaseModularPipeline", transformer=flux2_transformer(), scheduler=EULER(**SHIFTED))
    return Setup(pipe, SIZE | negative(5, 16, mask=False), prompts(prompt_embeds=(5, 16)), branches=2)


def flux3_transformer(**more: Any) -> Any:
    return diffusers.Flux3Transformer2DModel(
        in_channels=16, cond_in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=16, timestep_channels=16, axes_dims_rope=(4, 4, 4, 4), **more,
    )  # fmt: skip


def flux3() -> Setup:
    pipe = denoising("Flux3ModularPipeline", transformer=flux3_transformer(), scheduler=EULER(shift=3.0))
    return Setup(pipe, SIZE | negative(5, 16, mask=False), prompts(prompt_embeds=(5, 16)), branches=2)


def flux3_distilled() -> Setup:
    transformer = flux3_transformer(flow_map=True)
    pipe = denoising("Flux3DistilledModularPipeline", transformer=transformer, scheduler=EULER(shift=3.0))
    return Setup(pipe, SIZE, prompts(prompt_embeds=(5, 16)))


def krea2_transformer() -> Any:
    return diffusers.Krea2Transformer2DModel(
        in_channels=16, num_layers=2, attention_head_dim=16, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=32, timestep_embed_dim=16, text_hidden_dim=16, num_text_layers=2, text_num_attention_heads=2,
        text_num_key_value_heads=2, text_intermediate_size=32, num_layerwise_text_blocks=1, num_refiner_text_blocks=1,
        axes_dims_rope=(4, 6, 6),
    )  # fmt: skip


def krea2(name: str = "Krea2ModularPipeline") -> Setup:
    pipe = denoising(name, transformer=krea2_transformer(), scheduler=EULER(**SHIFTED))
    turbo = "Turbo" in name
    rows = prompts(prompt_embeds=(5, 2, 16), prompt_embeds_mask=(5,))
    rows = [row | {"prompt_embeds_mask": row["prompt_embeds_mask"].bool()} for row in rows]
    bad = {"negative_prompt_embeds": noise(9, 1, 5, 2, 16), "negative_prompt_embeds_mask": ones(5).bool()}
    return Setup(pipe, SIZE | ({} if turbo else bad), rows, branches=1 if turbo else 2)


def krea2_turbo() -> Setup:
    return krea2("Krea2TurboModularPipeline")


def qwen_transformer() -> Any:
    return diffusers.QwenImageTransformer2DModel(
        in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip


def qwen(name: str, **more: Any) -> Setup:
    pipe = denoising(name, transformer=qwen_transformer(), scheduler=EULER(**SHIFTED))
    return Setup(pipe, negative(5, 16) | more, qwen_rows(), branches=2)


def qwen_image() -> Setup:
    return qwen("QwenImageModularPipeline", **SIZE)


def qwen_edit() -> Setup:
    return qwen("QwenImageEditModularPipeline", **SIZE, image_latents=noise(7, 1, 4, 1, 8, 8))


def qwen_edit_plus() -> Setup:
    return qwen("QwenImageEditPlusModularPipeline", **SIZE, image_latents=[noise(7, 1, 4, 1, 8, 8)])


def qwen_layered() -> Setup:
    return qwen("QwenImageLayeredModularPipeline", layers=2, image_latents=noise(7, 1, 1, 4, 8, 8))


def qwen21(name: str = "QwenImage21ModularPipeline") -> Setup:
    transformer = diffusers.QwenImage21Transformer2DModel(
        in_channels=4, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2, context_in_dim=16,
        axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    pipe = denoising(name, transformer=transformer, scheduler=EULER(**SHIFTED))
    turbo, pad = "Turbo" in name, torch.zeros(1, 5, dtype=torch.bool)
    rows = [row | {"image_pad_mask": pad} for row in qwen_rows()]
    bad = {} if turbo else negative(5, 16) | {"negative_image_pad_mask": pad}
    return Setup(pipe, SIZE | bad, rows)


def qwen21_turbo() -> Setup:
    return qwen21("QwenImage21TurboModularPipeline")


def ernie_transformer() -> Any:
    return diffusers.ErnieImageTransformer2DModel(
        hidden_size=32, num_attention_heads=2, num_layers=2, ffn_hidden_size=32, in_channels=16, out_channels=16,
        text_in_dim=16, rope_axes_dim=(4, 6, 6),
    )  # fmt: skip


def ernie() -> Setup:
    pipe = denoising("ErnieImageModularPipeline", transformer=ernie_transformer(), scheduler=EULER())
    rows = [{"prompt_embeds": [noise(k, 5, 16)]} for k in range(PROMPTS)]
    return Setup(pipe, SIZE | {"negative_prompt_embeds": [noise(9, 5, 16)]}, rows, branches=2)


def anima() -> Setup:
    transformer = diffusers.CosmosTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=2, mlp_ratio=2,
        text_embed_dim=16, adaln_lora_dim=4, max_size=(4, 32, 32), rope_scale=(1.0, 4.0, 4.0),
        extra_pos_embed_type=None, concat_padding_mask=False,
    )  # fmt: skip
    conditioner = diffusers.AnimaTextConditioner(
        source_dim=16, target_dim=16, model_dim=16, num_layers=1, num_attention_heads=2, target_vocab_size=32,
        min_sequence_length=8,
    )  # fmt: skip
    pipe = denoising(
        "AnimaModularPipeline", transformer=transformer, text_conditioner=conditioner, scheduler=EULER(shift=3.0)
    )
    ids, kinds = torch.arange(5)[None], ("qwen_prompt_embeds", "qwen_attention_mask", "t5_attention_mask")
    rows = [dict(zip(kinds, (noise(k, 1, 5, 16), ones(5), ones(5)), strict=True)) for k in range(PROMPTS)]
    rows = [row | {"t5_input_ids": ids + k} for k, row in enumerate(rows)]
    bad = {f"negative_{name}": value for name, value in rows[0].items()} | {
        "negative_qwen_prompt_embeds": noise(9, 1, 5, 16)
    }
    return Setup(pipe, SIZE | bad, rows, branches=2)


def wan(name: str = "Wan22ModularPipeline", **more: Any) -> Setup:
    own = wan_i2v_transformer if "Image" in name else functools.partial(wan_i2v_transformer, in_channels=16)
    parts = {"transformer": own(), "transformer_2": own()} | more.pop("parts", {})
    pipe = denoising(name, scheduler=unipc(), **parts)
    return Setup(pipe, CLIP | negative(5, 16, mask=False) | more, prompts(prompt_embeds=(5, 16)), branches=2, steps=8)


def wan_i2v_transformer(**more: Any) -> Any:
    sizes = {"in_channels": 24, "out_channels": 16, "text_dim": 16, "freq_dim": 16, "ffn_dim": 32} | more
    return diffusers.WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, num_layers=1, rope_max_seq_len=32, **sizes,
    )  # fmt: skip


def wan22_i2v() -> Setup:
    return wan("Wan22Image2VideoModularPipeline", image_condition_latents=noise(7, 1, 8, 2, 8, 8))


def wan22_vace() -> Setup:
    sizes = {"in_channels": 16, "out_channels": 16, "text_dim": 16, "freq_dim": 16, "ffn_dim": 32}
    vace = [
        diffusers.WanVACETransformer3DModel(
            num_attention_heads=2, attention_head_dim=12, num_layers=1, rope_max_seq_len=32, vace_layers=[0],
            vace_in_channels=20, **sizes,
        )
        for _ in range(2)
    ]  # fmt: skip
    parts = {"transformer": vace[0], "transformer_2": vace[1]}
    control = {"control_hidden_states": noise(7, 1, 20, 2, 8, 8), "control_hidden_states_scale": torch.ones(1)}
    return wan("Wan22VaceModularPipeline", parts=parts, denoiser_input_fields=control)


def wan_i2v() -> Setup:
    transformer = wan_i2v_transformer(image_dim=16, added_kv_proj_dim=24)
    pipe = denoising("WanImage2VideoModularPipeline", scheduler=unipc(), transformer=transformer)
    given = {"image_condition_latents": noise(7, 1, 8, 2, 8, 8), "image_embeds": noise(6, 1, 5, 16)}
    return Setup(pipe, CLIP | negative(5, 16, mask=False) | given, prompts(prompt_embeds=(5, 16)), branches=2)


def hunyuan15_transformer() -> Any:
    return diffusers.HunyuanVideo15Transformer3DModel(
        in_channels=65, out_channels=32, num_attention_heads=2, attention_head_dim=16, num_layers=2,
        num_refiner_layers=1, mlp_ratio=2.0, text_embed_dim=16, text_embed_2_dim=16, image_embed_dim=16,
        rope_axes_dim=(4, 6, 6), target_size=64, task_type="t2v",
    )  # fmt: skip


def hunyuan15_rows() -> list[dict[str, Any]]:
    return prompts(prompt_embeds=(5, 16), prompt_embeds_mask=(5,), prompt_embeds_2=(3, 16), prompt_embeds_mask_2=(3,))


def hunyuan15_bad() -> dict[str, Any]:
    return negative(5, 16) | {
        "negative_prompt_embeds_2": noise(8, 1, 3, 16), "negative_prompt_embeds_mask_2": ones(3),
    }  # fmt: skip


def hunyuan15() -> Setup:
    pipe = denoising("HunyuanVideo15ModularPipeline", transformer=hunyuan15_transformer(), scheduler=EULER(shift=7.0))
    rows = [row | {"prompt_embeds_mask_2": ones(3)} for row in hunyuan15_rows()]
    return Setup(pipe, CLIP | hunyuan15_bad() | {"batch_size": 1}, rows, branches=2)


def helios_transformer() -> Any:
    return diffusers.HeliosTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16, freq_dim=16,
        ffn_dim=32, num_layers=1, rope_dim=(4, 4, 4),
    )  # fmt: skip


def helios(name: str = "HeliosPyramidModularPipeline", **scheduler: Any) -> Setup:
    kind = scheduler.pop("kind", diffusers.HeliosScheduler)
    pipe = denoising(name, transformer=helios_transformer(), scheduler=kind(gamma=0.3, **scheduler))
    call = SIZE | HELIOS | negative(5, 16, mask=False) | {"pyramid_num_inference_steps_list": [3, 3, 3]}
    return Setup(pipe, call, prompts(prompt_embeds=(5, 16)), branches=2)


def helios_distilled() -> Setup:
    setup = helios("HeliosPyramidDistilledModularPipeline", kind=diffusers.HeliosDMDScheduler)
    return Setup(setup.pipe, setup.call, setup.prompts)


def ideogram4_part() -> Any:
    return diffusers.Ideogram4Transformer2DModel(
        in_channels=16, num_layers=2, attention_head_dim=16, num_attention_heads=2, intermediate_size=32,
        adaln_dim=8, llm_features_dim=16, mrope_section=(4, 2, 2),
    )  # fmt: skip


def ideogram4() -> Setup:
    pipe = denoising(
        "Ideogram4ModularPipeline", transformer=ideogram4_part(), unconditional_transformer=ideogram4_part(),
        scheduler=EULER(),
    )  # fmt: skip
    rows: Sequence[Mapping[str, Any]] = [
        {"text_features": noise(k, 1, 5, 16), "text_lengths": torch.tensor([5])} for k in range(PROMPTS)
    ]
    return Setup(pipe, SIZE | {"guidance_schedule": (7.0,) * 6}, rows, branches=2)


def ltx(name: str = "LTX2ModularPipeline") -> Setup:
    parts = ltx2().pipe.components
    own = {part: parts[part] for part in ("transformer", "vae", "audio_vae", "scheduler")}
    pipe = denoising(name, **own)
    kinds = ("connector_prompt_embeds", "connector_audio_prompt_embeds")
    rows = [
        {name: noise(10 * k + n, 1, 5, 16) for n, name in enumerate(kinds)} | {"connector_attention_mask": ones(5)}
        for k in range(PROMPTS)
    ]
    bad = {f"negative_{name}": value for name, value in rows[0].items()}
    bad |= {f"negative_{name}": noise(90 + n, 1, 5, 16) for n, name in enumerate(kinds)}
    call = {"height": 32, "width": 32, "num_frames": 5, "batch_size": 1, "dtype": torch.float32}
    return Setup(pipe, call | bad, rows, branches=4)


def ltx25() -> Setup:
    return ltx("LTX25ModularPipeline")


def cosmos3_transformer() -> Any:
    return diffusers.Cosmos3OmniTransformer(
        head_dim=16, hidden_size=32, intermediate_size=32, latent_channel=4, latent_patch_size=2,
        num_attention_heads=2, num_hidden_layers=2, num_key_value_heads=1, patch_latent_dim=16, vocab_size=32,
        rope_axes_dim=(4, 2, 2),
    )  # fmt: skip


def cosmos3(name: str = "Cosmos3OmniModularPipeline", scheduler: Any = None) -> Setup:
    pipe = denoising(name, transformer=cosmos3_transformer(), scheduler=scheduler or unipc())
    rows = [{"cond_input_ids": [1, 2, 3 + k, 4], "uncond_input_ids": [1, 2]} for k in range(PROMPTS)]
    return Setup(pipe, CLIP, rows, branches=2)


def cosmos3_distilled() -> Setup:
    setup = cosmos3("Cosmos3DistilledModularPipeline", EULER())
    setup.pipe.update_components(distilled_sigmas=[1.0, 0.9, 0.75, 0.5, 0.3, 0.1])
    return Setup(setup.pipe, setup.call, setup.prompts)


def minimax_h3() -> Setup:
    transformer = diffusers.MiniMaxH3Transformer3DModel(
        num_attention_heads=2, attention_head_dim=16, hidden_size=32, num_layers=2, num_refiner_layers=1, ffn_dim=32,
        in_channels=24, audio_in_channels=32, text_dim=16, freq_dim=16, time_embed_hidden_dim=16, time_embed_dim=16,
        rope_freq_dim=2,
    )  # fmt: skip
    pipe = denoising(
        "MiniMaxH3ModularPipeline", transformer=transformer, scheduler=diffusers.MiniMaxH3Scheduler(),
        audio_scheduler=diffusers.MiniMaxH3Scheduler(),
    )  # fmt: skip
    rows = [{"prompt_embeds": noise(k, 1, 5, 16), "text_token_tags": ones(5)[0]} for k in range(PROMPTS)]
    return Setup(pipe, SIZE | {"num_frames": 124}, rows)


def minimax_music3() -> Setup:
    transformer = diffusers.MiniMaxMusic3Transformer1DModel(
        in_channels=4, condition_dim=16, num_layers=2, num_attention_heads=2, attention_head_dim=8, ff_inner_dim=32,
        rotary_dim=4, fourier_embedding_dim=8,
    )  # fmt: skip
    encoder = diffusers.MiniMaxMusic3ConditionEncoder(condition_hidden_dim=16, num_condition_layers=2, out_dim=16)
    pipe = denoising(
        "MiniMaxMusic3ModularPipeline", transformer=transformer, condition_encoder=encoder, scheduler=EULER()
    )
    rows = [{"frame_hiddens": noise(k, 1, 8, 32)} for k in range(PROMPTS)]
    return Setup(pipe, {}, rows, branches=2)


MODULAR = {
    "AnimaModularPipeline": anima,
    "Cosmos3DistilledModularPipeline": cosmos3_distilled,
    "Cosmos3OmniModularPipeline": cosmos3,
    "ErnieImageModularPipeline": ernie,
    "Flux2KleinBaseModularPipeline": flux2_klein,
    "Flux2ModularPipeline": flux2,
    "Flux3DistilledModularPipeline": flux3_distilled,
    "Flux3ModularPipeline": flux3,
    "HeliosPyramidDistilledModularPipeline": helios_distilled,
    "HeliosPyramidModularPipeline": helios,
    "HunyuanVideo15ModularPipeline": hunyuan15,
    "Ideogram4ModularPipeline": ideogram4,
    "Krea2ModularPipeline": krea2,
    "Krea2TurboModularPipeline": krea2_turbo,
    "LTX25ModularPipeline": ltx25,
    "LTX2ModularPipeline": ltx,
    "MiniMaxH3ModularPipeline": minimax_h3,
    "MiniMaxMusic3ModularPipeline": minimax_music3,
    "QwenImage21ModularPipeline": qwen21,
    "QwenImage21TurboModularPipeline": qwen21_turbo,
    "QwenImageEditModularPipeline": qwen_edit,
    "QwenImageEditPlusModularPipeline": qwen_edit_plus,
    "QwenImageLayeredModularPipeline": qwen_layered,
    "QwenImageModularPipeline": qwen_image,
    "Wan22Image2VideoModularPipeline": wan22_i2v,
    "Wan22ModularPipeline": wan,
    "Wan22VaceModularPipeline": wan22_vace,
    "WanImage2VideoModularPipeline": wan_i2v,
}
