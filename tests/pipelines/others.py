"""The rest of the pipelines of diffusers, by class: newer ones, and variants that take pictures."""

from __future__ import annotations

import functools
from typing import Any

import diffusers
import PIL.Image
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.longcat_image import pipeline_longcat_image_edit
from diffusers.pipelines.ltx2.pipeline_ltx2_condition import LTX2VideoCondition
from diffusers.pipelines.ltx2.pipeline_ltx2_ic_lora import LTX2ReferenceCondition
from diffusers.pipelines.qwenimage import (
    pipeline_qwenimage_edit_inpaint,
    pipeline_qwenimage_edit_plus,
    pipeline_qwenimage_layered,
)

from .audio import tokenizer
from .image import chroma, cogview4, z_image
from .ltx import ltx, ltx2
from .modular import (
    CLIP,
    HELIOS,
    SHIFTED,
    SIZE,
    cosmos3_transformer,
    denoising,
    ernie_transformer,
    helios_transformer,
    hunyuan15_bad,
    hunyuan15_rows,
    hunyuan15_transformer,
    ideogram4_part,
    krea2_transformer,
    negative,
    qwen_rows,
    qwen_transformer,
)
from .modular import krea2 as krea2_modular
from .setup import PROMPTS, Setup, autoencoder, noise, ones, prompts
from .unet import BASE, SCHEDULE, sd_parts, sdxl
from .video import unipc, wan_transformer

EULER = FlowMatchEulerDiscreteScheduler


def picture(size: int = 64) -> PIL.Image.Image:
    """Returns an image of noise."""
    values = (noise(7, size, size, 3).sigmoid() * 255).to(torch.uint8).numpy()
    return PIL.Image.fromarray(values)


def answering(pipe: Any, method: str, value: Any) -> Any:
    """Lets a method of a pipeline, say its text encoding, answer what it is told; returns the pipeline."""
    setattr(pipe, method, value if callable(value) else lambda *args, **kwargs: value)
    return pipe


def deep_autoencoder(channels: int = 4) -> diffusers.AutoencoderKL:
    """Returns an autoencoder that takes height and width down to an eighth."""
    return diffusers.AutoencoderKL(
        block_out_channels=(4,) * 4, down_block_types=("DownEncoderBlock2D",) * 4, norm_num_groups=2,
        up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=1, mid_block_add_attention=False,
        latent_channels=channels, shift_factor=0.0, scaling_factor=1.0,
    )  # fmt: skip


def qwen_vae() -> diffusers.AutoencoderKLQwenImage:
    return diffusers.AutoencoderKLQwenImage(
        base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_mean=[0.0] * 4, latents_std=[1.0] * 4
    )


def wan_vae(channels: int = 4) -> diffusers.AutoencoderKLWan:
    return diffusers.AutoencoderKLWan(
        base_dim=4, z_dim=channels, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_mean=[0.0] * channels,
        latents_std=[1.0] * channels,
    )  # fmt: skip


# LTX


def ltx2_variant(name: str, more: dict[str, Any], without: tuple[str, ...] = (), **config: Any) -> Setup:
    """Returns a pipeline of the LTX-2 family, of the parts of the plain one."""
    setup = ltx2()
    parts = dict(setup.pipe.components)
    if config:
        kind = type(parts["transformer"])
        parts["transformer"] = kind.from_config(parts["transformer"].config, **config)
    kind = getattr(diffusers, name)
    pipe = kind(**{part: parts[part] for part in parts if part in kind.__init__.__annotations__})
    call = {key: value for key, value in setup.call.items() if key not in without}
    return Setup(pipe, call | more, setup.prompts, setup.branches)


def ltx2_i2v() -> Setup:
    return ltx2_variant("LTX2ImageToVideoPipeline", {"image": noise(7, 1, 3, 32, 32).sigmoid(), "image_crf": 0})


def ltx2_condition() -> Setup:
    return ltx2_variant("LTX2ConditionPipeline", {"conditions": [LTX2VideoCondition(picture(32), 0, 1.0, 0)]})


def ltx2_in_context() -> Setup:
    frames = [picture(32)] * 5
    return ltx2_variant("LTX2InContextPipeline", {"reference_conditions": [LTX2ReferenceCondition(frames, 1.0)]})


def ltx2_hdr() -> Setup:
    sound = ("audio_stg_scale", "audio_modality_scale")
    more = {"reference_conditions": [LTX2ReferenceCondition([picture(32)] * 5, 1.0)]}
    return ltx2_variant("LTX2HDRPipeline", more, sound)


def ltx2_dfr() -> Setup:
    guided = ("stg_scale", "modality_scale", "spatio_temporal_guidance_blocks")
    guided += ("audio_stg_scale", "audio_modality_scale", "negative_prompt_embeds", "negative_prompt_attention_mask")
    return ltx2_variant("LTX2DFRPipeline", {}, guided, use_keyframes_abs_pos_embedding=True)


def ltx_long() -> Setup:
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=8, block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1), decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, True, False), decoder_spatio_temporal_scaling=(True, True, True, False),
        decoder_inject_noise=(False,) * 5, upsample_residual=(False,) * 4, upsample_factor=(1,) * 4,
        timestep_conditioning=False, patch_size=1, patch_size_t=1, encoder_causal=True, decoder_causal=False,
    )  # fmt: skip
    pipe = diffusers.LTXI2VLongMultiPromptPipeline(EULER(), vae, None, None, ltx().pipe.transformer)
    embeds = [noise(k, 1, 5, 16) for k in range(PROMPTS)]
    pipe = answering(pipe, "encode_prompt", lambda prompt, *a, **k: (embeds[len(prompt) % 3], ones(5), None, None))
    call = {"height": 64, "width": 64, "num_frames": 17, "temporal_tile_size": 16, "temporal_overlap": 8}
    return Setup(pipe, call, [{"prompt": "x" * k} for k in (1, 2, 3)])


def kandinsky6() -> Setup:
    transformer = diffusers.Kandinsky6Transformer3DModel(
        in_visual_dim=4, out_visual_dim=40, in_text_dim=16, in_text_dim2=16, time_dim=16, model_dim=32, ff_dim=32,
        num_text_blocks=1, num_visual_blocks=1, axes_dims=(4, 6, 6), in_audio_dim=4, out_audio_dim=40,
    )  # fmt: skip
    names = ("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "audio_vae", "vocoder")
    pipe = diffusers.Kandinsky6TI2VAPipeline(
        transformer=transformer, scheduler=diffusers.PiflowScheduler(), **dict.fromkeys(names)
    )
    bad = {"negative_prompt_embeds": noise(9, 1, 5, 16), "negative_pooled_prompt_embeds": noise(8, 1, 16)}
    rows = prompts(prompt_embeds=(5, 16), pooled_prompt_embeds=(16,))
    return Setup(pipe, CLIP | bad | {"sample_audio": False}, rows, branches=2)


# Pictures


def z_control(name: str = "ZImageControlNetPipeline", **more: Any) -> Setup:
    setup = z_image()
    transformer = setup.pipe.transformer
    inputs = 9 if more else 4
    controlnet = diffusers.ZImageControlNetModel(
        control_layers_places=[0], control_refiner_layers_places=[0], control_in_dim=inputs, dim=32,
        n_refiner_layers=1, n_heads=2, n_kv_heads=2, add_control_noise_refiner="control_noise_refiner",
    )  # fmt: skip
    kind = getattr(diffusers, name)
    pipe = kind(EULER(**SHIFTED), deep_autoencoder(), None, None, transformer, controlnet)
    return Setup(pipe, setup.call | {"control_image": noise(7, 1, 3, 64, 64).sigmoid()} | more, setup.prompts)


def z_control_inpaint() -> Setup:
    mask = (noise(6, 1, 1, 64, 64) > 0).float()
    return z_control("ZImageControlNetInpaintPipeline", image=noise(5, 1, 3, 64, 64).sigmoid(), mask_image=mask)


def z_omni() -> Setup:
    transformer = diffusers.ZImageTransformer2DModel(
        in_channels=4, dim=32, n_layers=1, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=16,
        siglip_feat_dim=16, axes_dims=[8, 4, 4], axes_lens=[64, 16, 16],
    )  # fmt: skip
    for token in (transformer.x_pad_token, transformer.cap_pad_token, transformer.siglip_pad_token):
        torch.nn.init.normal_(token)
    pipe = diffusers.ZImageOmniPipeline(EULER(**SHIFTED), deep_autoencoder(), None, None, transformer, None, None)
    rows = [{"prompt_embeds": [[noise(k, 5, 16)]]} for k in range(PROMPTS)]
    return Setup(pipe, SIZE | {"negative_prompt_embeds": [[noise(9, 5, 16)]]}, rows)


class Processor:
    """Stands in for a processor of texts and images, which some pipelines ask for its parts at once."""

    dtype = torch.float32

    def __init__(self) -> None:
        self.tokenizer = self.image_processor = self

    def apply_chat_template(self, *args: Any, **kwargs: Any) -> list[list[int]]:
        return [[0]]

    def encode(self, text: str) -> list[int]:
        return [0]


def qwen21() -> Setup:
    transformer = diffusers.QwenImage21Transformer2DModel(
        in_channels=4, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2, context_in_dim=16,
        axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    pipe = diffusers.QwenImage21Pipeline(EULER(**SHIFTED), None, None, Processor(), transformer)
    return Setup(pipe, SIZE | negative(5, 16) | {"true_cfg_scale": 4.0}, qwen_rows(), branches=2)


def qwen_control_inpaint() -> Setup:
    controlnet = diffusers.QwenImageControlNetModel(
        in_channels=16, out_channels=4, num_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, axes_dims_rope=(4, 6, 6), extra_condition_channels=4,
    )  # fmt: skip
    pipe = diffusers.QwenImageControlNetInpaintPipeline(
        EULER(**SHIFTED), qwen_vae(), None, None, qwen_transformer(), controlnet
    )
    given = {"control_image": noise(7, 1, 3, 64, 64).sigmoid(), "control_mask": (noise(6, 1, 1, 64, 64) > 0).float()}
    return Setup(pipe, SIZE | negative(5, 16) | given, qwen_rows(), branches=2)


def qwen_edit_inpaint() -> Setup:
    pipeline_qwenimage_edit_inpaint.calculate_dimensions = lambda *area: (64, 64, None)  # and not a megapixel
    pipe = diffusers.QwenImageEditInpaintPipeline(EULER(**SHIFTED), qwen_vae(), None, None, None, qwen_transformer())
    given = {"image": picture(), "mask_image": (noise(6, 1, 1, 64, 64) > 0).float()}
    return Setup(pipe, SIZE | negative(5, 16) | given | {"strength": 0.7}, qwen_rows(), branches=2, steps=9)


def chroma_inpaint() -> Setup:
    setup = chroma()
    setup.pipe.transformer.register_to_config(guidance_embeds=False)  # which its call asks for
    pipe = diffusers.ChromaInpaintPipeline(EULER(), deep_autoencoder(), None, None, setup.pipe.transformer)
    given = {"image": noise(7, 1, 3, 64, 64).sigmoid(), "mask_image": (noise(6, 1, 1, 64, 64) > 0).float()}
    return Setup(pipe, dict(setup.call) | given | {"strength": 0.7}, setup.prompts, branches=2, steps=9)


def cogview4_control() -> Setup:
    setup = cogview4()
    transformer = diffusers.CogView4Transformer2DModel.from_config(setup.pipe.transformer.config, in_channels=8)
    pipe = diffusers.CogView4ControlPipeline(None, None, deep_autoencoder(), transformer, setup.pipe.scheduler)
    return Setup(pipe, dict(setup.call) | {"control_image": noise(7, 1, 3, 64, 64)}, setup.prompts, branches=2)


def ernie() -> Setup:
    pipe = diffusers.ErnieImagePipeline(ernie_transformer(), None, None, None, EULER(), None, None)
    rows = [{"prompt_embeds": [noise(k, 5, 16)]} for k in range(PROMPTS)]
    return Setup(pipe, SIZE | {"negative_prompt_embeds": [noise(9, 5, 16)]}, rows)


def longcat_transformer() -> Any:
    return diffusers.LongCatImageTransformer2DModel(
        in_channels=64, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, pooled_projection_dim=16, axes_dims_rope=[4, 6, 6],
    )  # fmt: skip


def longcat() -> Setup:
    pipe = diffusers.LongCatImagePipeline(
        EULER(**SHIFTED), deep_autoencoder(16), None, None, None, longcat_transformer()
    )
    embeds, ids = [noise(k, 1, 5, 16) for k in range(PROMPTS)], torch.zeros(5, 3)
    pipe = answering(pipe, "encode_prompt", lambda prompt, *a, **k: (embeds[len(prompt) % 3], ids))
    return Setup(pipe, SIZE | {"enable_prompt_rewrite": False}, [{"prompt": "x" * k} for k in (1, 2, 3)], branches=2)


def glm_image() -> Setup:
    transformer = diffusers.GlmImageTransformer2DModel(
        in_channels=4, out_channels=4, num_layers=1, attention_head_dim=16, num_attention_heads=2, text_embed_dim=16,
        time_embed_dim=16, condition_dim=4, prior_vq_quantizer_codebook_size=16,
    )  # fmt: skip
    pipe = diffusers.GlmImagePipeline(None, None, None, None, deep_autoencoder(), transformer, EULER(**SHIFTED))
    rows = [{"prompt_embeds": noise(k, 1, 5, 16), "prior_token_ids": torch.arange(16)[None]} for k in range(PROMPTS)]
    return Setup(pipe, SIZE | {"negative_prompt_embeds": noise(9, 1, 5, 16)}, rows, branches=2)


def bria_fibo2() -> Setup:
    transformer = diffusers.BriaFibo2Transformer2DModel(
        in_channels=4, dim=32, n_layers=2, n_refiner_layers=1, n_heads=2, cap_feat_dim=16, injection_layer_ids=(1,),
        perceiver_num_layers=1, min_num_gist_tokens=4, max_num_gist_tokens=8, gist_step=4, gist_min_text_len=4,
        gist_max_text_len=32, axes_dims=(4, 6, 6), axes_lens=(64, 32, 32),
    )  # fmt: skip
    pipe = diffusers.BriaFibo2Pipeline(transformer, EULER(**SHIFTED), None, None, None)
    rows = prompts(prompt_embeds=(2, 5, 16), prompt_embeds_mask=(5,))
    bad = {"negative_prompt_embeds": noise(9, 1, 2, 5, 16), "negative_prompt_embeds_mask": ones(5)}
    return Setup(pipe, SIZE | bad, rows, branches=2)


def ideogram4() -> Setup:
    pipe = diffusers.Ideogram4Pipeline(EULER(), None, None, None, ideogram4_part(), ideogram4_part(), None)

    def encode_prompt(prompt: Any, grid_h: int, grid_w: int, **rest: Any) -> Any:
        text = noise(len(str(prompt)), 1, 5, 16)
        packed = torch.cat([text, torch.zeros(1, grid_h * grid_w, 16)], dim=1)
        return packed, *pipe._prepare_ids([5], grid_h, grid_w, 5, torch.device("cpu"))

    pipe = answering(pipe, "encode_prompt", encode_prompt)
    rows = [{"prompt": "x" * k} for k in (1, 2, 3)]
    return Setup(
        pipe, SIZE | {"guidance_scale": 4.0, "guidance_schedule": None, "max_sequence_length": 5}, rows, branches=2
    )


def hunyuan_refiner() -> Setup:
    transformer = diffusers.HunyuanImageTransformer2DModel(
        in_channels=16, out_channels=8, num_attention_heads=2, attention_head_dim=16, num_layers=1,
        num_single_layers=1, num_refiner_layers=1, patch_size=(1, 1, 1), guidance_embeds=True, text_embed_dim=16,
        rope_axes_dim=(4, 6, 6),
    )  # fmt: skip
    vae = diffusers.AutoencoderKLHunyuanImageRefiner(
        latent_channels=4, block_out_channels=(8, 8, 8, 8, 8), layers_per_block=1, downsample_match_channel=False,
        upsample_match_channel=False, scaling_factor=1.0,
    )  # fmt: skip
    pipe = diffusers.HunyuanImageRefinerPipeline(EULER(), vae, None, None, transformer)
    call = SIZE | negative(5, 16) | {"image": noise(7, 1, 3, 64, 64).sigmoid()}
    return Setup(pipe, call, qwen_rows())


def kandinsky5_i2i() -> Setup:
    transformer = diffusers.Kandinsky5Transformer3DModel(
        in_visual_dim=4, in_text_dim=16, in_text_dim2=16, time_dim=16, out_visual_dim=4, model_dim=32, ff_dim=32,
        num_text_blocks=1, num_visual_blocks=1, axes_dims=(4, 6, 6), visual_cond=True,
    )  # fmt: skip
    pipe = diffusers.Kandinsky5I2IPipeline(transformer, deep_autoencoder(), None, None, None, None, EULER())
    pipe.resolutions = [(64, 64)]
    ends = torch.tensor([0, 5], dtype=torch.int32)
    call = SIZE | {
        "image": noise(7, 1, 3, 64, 64).sigmoid(), "negative_prompt_embeds_qwen": noise(9, 1, 5, 16),
        "negative_prompt_embeds_clip": noise(8, 1, 16), "prompt_cu_seqlens": ends, "negative_prompt_cu_seqlens": ends,
    }  # fmt: skip
    return Setup(pipe, call, prompts(prompt_embeds_qwen=(5, 16), prompt_embeds_clip=(16,)), branches=2)


def krea2() -> Setup:
    pipe = diffusers.Krea2Pipeline(EULER(**SHIFTED), qwen_vae(), None, None, krea2_transformer())
    modular = krea2_modular()
    return Setup(pipe, modular.call, modular.prompts, branches=2)


def qwen_edit_plus() -> Setup:
    pipeline_qwenimage_edit_plus.calculate_dimensions = lambda *area: (64, 64)  # and not a megapixel
    pipe = diffusers.QwenImageEditPlusPipeline(EULER(**SHIFTED), qwen_vae(), None, None, None, qwen_transformer())
    call = SIZE | negative(5, 16) | {"image": picture(), "true_cfg_scale": 4.0}
    return Setup(pipe, call, qwen_rows(), branches=2)


def qwen_layered() -> Setup:
    pipeline_qwenimage_layered.calculate_dimensions = lambda *area: (64, 64)
    encoder = Processor()
    pipe = diffusers.QwenImageLayeredPipeline(EULER(**SHIFTED), qwen_vae(), encoder, None, None, qwen_transformer())
    pipe = answering(
        pipe, "encode_prompt", lambda prompt=None, *a, **k: (noise(len(prompt), 1, 5, 16), ones(5).bool())
    )
    call = {"image": picture(), "layers": 2, "negative_prompt": ""}
    return Setup(pipe, call, [{"prompt": "x" * k} for k in (1, 2, 3)], branches=2)


def longcat_edit() -> Setup:
    pipeline_longcat_image_edit.calculate_dimensions = lambda *area: (64, 64)
    pipe = diffusers.LongCatImageEditPipeline(
        EULER(**SHIFTED), deep_autoencoder(16), None, None, Processor(), longcat_transformer()
    )
    embeds, ids = [noise(k, 1, 5, 16) for k in range(PROMPTS)], torch.zeros(5, 3)
    pipe = answering(pipe, "encode_prompt", lambda prompt, *a, **k: (embeds[len(prompt) % 3], ids))
    return Setup(
        pipe, {"image": picture(), "negative_prompt": ""}, [{"prompt": "x" * k} for k in (1, 2, 3)], branches=2
    )


# U-Nets


def unet2d(channels: int = 3) -> diffusers.UNet2DModel:
    return diffusers.UNet2DModel(
        sample_size=16, in_channels=channels, out_channels=3, block_out_channels=(8, 16), layers_per_block=1,
        norm_num_groups=4, down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    )  # fmt: skip


def ddpm() -> Setup:
    return Setup(diffusers.DDPMPipeline(unet2d(), diffusers.DDPMScheduler()), {}, [{"batch_size": 1}] * PROMPTS)


def consistency() -> Setup:
    scheduler = diffusers.CMStochasticIterativeScheduler(num_train_timesteps=40)
    return Setup(diffusers.ConsistencyModelPipeline(unet2d(), scheduler), {}, [{"batch_size": 1}] * PROMPTS)


def super_resolution() -> Setup:
    vqvae = diffusers.VQModel(block_out_channels=(4,), norm_num_groups=2, num_vq_embeddings=16)
    scheduler = diffusers.DDIMScheduler(**SCHEDULE)
    pipe = diffusers.LDMSuperResolutionPipeline(vqvae, unet2d(6), scheduler)
    return Setup(pipe, {}, [{"image": noise(k, 1, 3, 16, 16).sigmoid()} for k in range(PROMPTS)])


def depth2img() -> Setup:
    parts = sd_parts(5)
    own = {name: parts[name] for name in ("vae", "text_encoder", "tokenizer", "unet", "scheduler")}
    pipe = diffusers.StableDiffusionDepth2ImgPipeline(**own, depth_estimator=None, feature_extractor=None)
    call = {
        "negative_prompt_embeds": noise(9, 1, 5, 16), "image": noise(7, 1, 3, 16, 16).sigmoid(), "strength": 0.7,
        "depth_map": noise(6, 1, 16, 16),
    }  # fmt: skip
    return Setup(pipe, call, prompts(prompt_embeds=(5, 16)), steps=9)


def upscale() -> Setup:
    parts = sd_parts(7)
    unet = diffusers.UNet2DConditionModel.from_config(parts["unet"].config, num_class_embeds=350)
    pipe = diffusers.StableDiffusionUpscalePipeline(
        parts["vae"], None, None, unet, diffusers.DDPMScheduler(), parts["scheduler"], max_noise_level=350
    )
    call = {"negative_prompt_embeds": noise(9, 1, 5, 16), "image": noise(7, 1, 3, 16, 16).sigmoid()}
    return Setup(pipe, call, prompts(prompt_embeds=(5, 16)))


def union(name: str = "StableDiffusionXLControlNetUnionPipeline", **more: Any) -> Setup:
    setup = sdxl()
    controlnet = diffusers.ControlNetUnionModel(
        **{k: v for k, v in BASE.items() if k != "sample_size"}, conditioning_embedding_out_channels=(4, 8),
        addition_embed_type="text_time", addition_time_embed_dim=4, use_linear_projection=True,
        projection_class_embeddings_input_dim=6 * 4 + 16, num_trans_channel=8, num_trans_head=2, num_proj_channel=8,
    )  # fmt: skip
    parts = {k: v for k, v in setup.pipe.components.items() if k not in ("image_encoder", "feature_extractor")}
    kind = getattr(diffusers, name)
    flags = {"requires_aesthetics_score": False} if "Img2Img" in name or "Inpaint" in name else {}
    pipe = kind(**parts, controlnet=controlnet, add_watermarker=False, **flags)
    call = dict(setup.call) | {"control_image": [noise(7, 1, 3, 16, 16).sigmoid()], "control_mode": [0]} | more
    return Setup(pipe, call, setup.prompts, steps=9 if "strength" in more else 6)


def union_img2img() -> Setup:
    image = noise(5, 1, 3, 16, 16).sigmoid()
    return union("StableDiffusionXLControlNetUnionImg2ImgPipeline", image=image, strength=0.7)


def union_inpaint() -> Setup:
    given = {"image": noise(5, 1, 3, 16, 16).sigmoid(), "mask_image": (noise(6, 1, 1, 16, 16) > 0).float()}
    return union("StableDiffusionXLControlNetUnionInpaintPipeline", **given, strength=0.7)


def marigold(name: str, channels: int = 4) -> Setup:
    unet = diffusers.UNet2DConditionModel(
        **BASE, in_channels=channels + 4, out_channels=channels, up_block_types=("CrossAttnUpBlock2D", "UpBlock2D")
    )
    kind = getattr(diffusers, name)
    scheduler = diffusers.DDIMScheduler(**SCHEDULE, clip_sample=False)
    more = {"target_properties": {"target_names": ["albedo"]}} if "Intrinsics" in name else {}
    pipe = kind(unet=unet, vae=autoencoder(), scheduler=scheduler, text_encoder=None, tokenizer=None, **more)
    pipe.empty_text_embedding = noise(9, 1, 2, 16)
    call = {"processing_resolution": 0, "match_input_resolution": False}
    return Setup(pipe, call, [{"image": noise(k, 1, 3, 16, 16).sigmoid()} for k in range(PROMPTS)])


# Video and sound


def hunyuan15_i2v() -> Setup:
    transformer = diffusers.HunyuanVideo15Transformer3DModel.from_config(
        hunyuan15_transformer().config, task_type="i2v", in_channels=9, out_channels=4
    )
    vae = diffusers.AutoencoderKLHunyuanVideo15(
        latent_channels=4, block_out_channels=(8, 8, 8, 8, 8), layers_per_block=1, downsample_match_channel=False,
        upsample_match_channel=False, scaling_factor=1.0,
    )  # fmt: skip
    pipe = diffusers.HunyuanVideo15ImageToVideoPipeline(
        None, None, transformer, vae, EULER(shift=7.0), None, None, diffusers.ClassifierFreeGuidance(4.0), None, None
    )
    pipe = answering(pipe, "encode_image", noise(6, 1, 4, 16))
    return Setup(pipe, hunyuan15_bad() | {"num_frames": 5, "image": picture()}, hunyuan15_rows(), branches=2)


def hunyuan15() -> Setup:
    pipe = hunyuan15_i2v().pipe
    transformer = diffusers.HunyuanVideo15Transformer3DModel.from_config(pipe.transformer.config, task_type="t2v")
    pipe = diffusers.HunyuanVideo15Pipeline(
        None, None, transformer, pipe.vae, EULER(shift=7.0), None, None, diffusers.ClassifierFreeGuidance(6.0)
    )
    return Setup(pipe, hunyuan15_bad() | CLIP, hunyuan15_rows(), branches=2)


def wan_i2v() -> Setup:
    transformers = [
        diffusers.WanTransformer3DModel.from_config(wan_transformer().config, in_channels=12) for _ in range(2)
    ]
    pipe = diffusers.WanImageToVideoPipeline(
        None, None, wan_vae(), unipc(), None, None, *transformers, boundary_ratio=0.8
    )
    call = CLIP | negative(5, 16, mask=False) | {"image": picture()}
    return Setup(pipe, call, prompts(prompt_embeds=(5, 16)), branches=2, steps=8)


def wan_animate2(name: str = "WanAnimate2ModularPipeline") -> Setup:
    """Two segments, each of which reads the driving video into a key-value cache first."""
    transformer = diffusers.WanAnimate2Transformer3DModel(
        text_len=16, in_dim=12, dim=24, ffn_dim=32, freq_dim=16, text_dim=16, out_dim=4, num_heads=2, num_layers=1
    )
    pipe = denoising(name, transformer=transformer, vae=wan_vae(), scheduler=EULER(shift=3.0))
    call = SIZE | negative(5, 16, mask=False) | {
        "segment_frame_length": 5, "num_segments": 2, "effective_segment": 4,
        "reference_image_latents": noise(7, 8, 1, 8, 8), "driving_video_pixels": noise(6, 1, 3, 9, 64, 64),
        "condition_clip_context": noise(5, 1, 5, 1280), "prompt_ref_embeds": noise(4, 1, 5, 16),
        "denoiser_input_fields": {"encoder_hidden_states_image": noise(5, 1, 5, 1280)},
    }  # fmt: skip
    return Setup(pipe, call, prompts(prompt_embeds=(5, 16)), branches=2)


def wan_animate2_distilled() -> Setup:
    setup = wan_animate2("WanAnimate2DistilledModularPipeline")
    return Setup(setup.pipe, setup.call, setup.prompts)


def lucy() -> Setup:
    transformer = diffusers.WanTransformer3DModel.from_config(wan_transformer().config, in_channels=8)
    pipe = diffusers.LucyEditPipeline(None, None, wan_vae(), EULER(), transformer, None)
    call = CLIP | negative(5, 16, mask=False) | {"video": [picture()] * 5}
    return Setup(pipe, call, prompts(prompt_embeds=(5, 16)), branches=2)


def helios_pyramid() -> Setup:
    pipe = diffusers.HeliosPyramidPipeline(
        None, None, wan_vae(), diffusers.HeliosScheduler(gamma=0.3), helios_transformer()
    )
    call = SIZE | HELIOS | negative(5, 16, mask=False) | {"pyramid_num_inference_steps_list": [3, 3, 3]}
    return Setup(pipe, call, prompts(prompt_embeds=(5, 16)), branches=2)


def easy_animate(name: str = "EasyAnimateControlPipeline") -> Setup:
    transformer = diffusers.EasyAnimateTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=12 if "Control" in name else 9, out_channels=4,
        patch_size=2, sample_width=8, sample_height=8, num_layers=1, mmdit_layers=1, time_embed_dim=8,
        text_embed_dim=16, add_noise_in_inpaint_model=False,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLMagvit(
        latent_channels=4, block_out_channels=(8, 8, 8, 8), norm_num_groups=2, layers_per_block=1,
        down_block_types=("SpatialDownBlock3D", "SpatialTemporalDownBlock3D", "SpatialTemporalDownBlock3D",
                          "SpatialTemporalDownBlock3D"),
        up_block_types=("SpatialUpBlock3D", "SpatialTemporalUpBlock3D", "SpatialTemporalUpBlock3D",
                        "SpatialTemporalUpBlock3D"),
    )  # fmt: skip
    pipe = getattr(diffusers, name)(vae, None, None, transformer, EULER())
    if "Control" in name:  # its call hands encode_prompt an argument that it does not take
        kinds = ("prompt_embeds", "negative_prompt_embeds", "prompt_attention_mask", "negative_prompt_attention_mask")
        pipe = answering(pipe, "encode_prompt", lambda **given: tuple(given[name] for name in kinds))
    bad = {"negative_prompt_embeds": noise(9, 1, 5, 16), "negative_prompt_attention_mask": ones(5)}
    clip = noise(7, 1, 3, 5, 64, 64).sigmoid()
    given = {"control_video": clip} if "Control" in name else {"video": clip, "mask_video": clip[:, :1] * 0 + 255}
    return Setup(pipe, CLIP | bad | given, prompts(prompt_embeds=(5, 16), prompt_attention_mask=(5,)))


def cosmos3() -> Setup:
    pipe = diffusers.Cosmos3OmniPipeline(
        cosmos3_transformer(), tokenizer(), wan_vae(), unipc(), None, None, enable_safety_checker=False
    )
    pipe = answering(pipe, "tokenize_prompt", lambda prompt, *a, **k: ([1, 2, 3 + len(str(prompt)) % 3, 4], [1, 2]))
    return Setup(pipe, CLIP | {"enable_safety_check": False}, [{"prompt": "x" * k} for k in (1, 2, 3)], branches=2)


def sana_wm() -> Setup:
    transformer = diffusers.SanaWMTransformer3DModel(
        in_channels=4, num_layers=2, hidden_size=32, num_attention_heads=2, softmax_every_n=2, linear_head_dim=16,
        chunk_plucker_channels=12, chunk_plucker_post_attn_blocks=2, image_size=64, caption_channels=16,
        mixed_precision="no",
    )  # fmt: skip
    pipe = diffusers.SanaWMPipeline(None, None, ltx2().pipe.vae, transformer, EULER())
    bad = {"negative_prompt_embeds": noise(9, 1, 5, 16), "negative_prompt_attention_mask": ones(5)}
    call = {"image": picture(32), "height": 32, "width": 32, "num_frames": 5, "action": "w-4", **bad}
    call["intrinsics"] = [32.0, 32.0, 16.0, 16.0]
    rows = [row | {"prompt": ""} for row in prompts(prompt_embeds=(5, 16), prompt_attention_mask=(5,))]
    return Setup(pipe, call, rows)


def stable_audio3(name: str = "StableAudio3AudioToAudioPipeline", **more: Any) -> Setup:
    vae = diffusers.AutoencoderSAME(
        patch_size=4, encoder_channels=16, encoder_c_mults=(1,), encoder_strides=(4,), encoder_transformer_depths=(1,),
        latent_dim=4, dim_heads=8, ff_mult=1, sampling_rate=1600,
    )  # fmt: skip
    transformer = diffusers.StableAudio3DiTModel(
        io_channels=4, embed_dim=32, depth=2, num_heads=2, cond_token_dim=16, global_cond_dim=16, local_add_cond_dim=5,
        timestep_features_dim=16, ff_mult=1.0, num_memory_tokens=2,
    )  # fmt: skip
    duration = diffusers.StableAudio3DurationEmbedder(output_dim=16, fourier_dim=8)
    pipe = getattr(diffusers, name)(vae, None, None, duration, transformer, EULER())
    audio = {} if name == "StableAudio3Pipeline" else {"audio": noise(7, 1, 2, 1600)}
    call = {"duration": 1.0, "encoder_attention_mask": ones(5).bool(), **audio} | more
    return Setup(pipe, call, prompts(prompt_embeds=(5, 16)))


def stable_audio3_inpaint() -> Setup:
    return stable_audio3("StableAudio3InpaintPipeline", mask_start_seconds=0.2, mask_end_seconds=0.6)


OTHERS = {
    "BriaFibo2Pipeline": bria_fibo2,
    "ChromaInpaintPipeline": chroma_inpaint,
    "CogView4ControlPipeline": cogview4_control,
    "ConsistencyModelPipeline": consistency,
    "Cosmos3OmniPipeline": cosmos3,
    "DDPMPipeline": ddpm,
    "EasyAnimateControlPipeline": easy_animate,
    "EasyAnimateInpaintPipeline": functools.partial(easy_animate, "EasyAnimateInpaintPipeline"),
    "ErnieImagePipeline": ernie,
    "GlmImagePipeline": glm_image,
    "HeliosPyramidPipeline": helios_pyramid,
    "HunyuanImageRefinerPipeline": hunyuan_refiner,
    "HunyuanVideo15ImageToVideoPipeline": hunyuan15_i2v,
    "HunyuanVideo15Pipeline": hunyuan15,
    "Ideogram4Pipeline": ideogram4,
    "Kandinsky5I2IPipeline": kandinsky5_i2i,
    "Krea2Pipeline": krea2,
    "LDMSuperResolutionPipeline": super_resolution,
    "Kandinsky6TI2VAPipeline": kandinsky6,
    "LTX2ConditionPipeline": ltx2_condition,
    "LTX2DFRPipeline": ltx2_dfr,
    "LTX2HDRPipeline": ltx2_hdr,
    "LTX2ImageToVideoPipeline": ltx2_i2v,
    "LTX2InContextPipeline": ltx2_in_context,
    "LTXI2VLongMultiPromptPipeline": ltx_long,
    "LongCatImageEditPipeline": longcat_edit,
    "LongCatImagePipeline": longcat,
    "LucyEditPipeline": lucy,
    "MarigoldDepthPipeline": functools.partial(marigold, "MarigoldDepthPipeline"),
    "MarigoldIntrinsicsPipeline": functools.partial(marigold, "MarigoldIntrinsicsPipeline"),
    "MarigoldNormalsPipeline": functools.partial(marigold, "MarigoldNormalsPipeline"),
    "QwenImage21Pipeline": qwen21,
    "QwenImageControlNetInpaintPipeline": qwen_control_inpaint,
    "QwenImageEditInpaintPipeline": qwen_edit_inpaint,
    "QwenImageEditPlusPipeline": qwen_edit_plus,
    "QwenImageLayeredPipeline": qwen_layered,
    "SanaWMPipeline": sana_wm,
    "StableAudio3AudioToAudioPipeline": stable_audio3,
    "StableAudio3InpaintPipeline": stable_audio3_inpaint,
    "StableAudio3Pipeline": functools.partial(stable_audio3, "StableAudio3Pipeline"),
    "StableDiffusionDepth2ImgPipeline": depth2img,
    "StableDiffusionUpscalePipeline": upscale,
    "StableDiffusionXLControlNetUnionImg2ImgPipeline": union_img2img,
    "StableDiffusionXLControlNetUnionInpaintPipeline": union_inpaint,
    "StableDiffusionXLControlNetUnionPipeline": union,
    "WanAnimate2DistilledModularPipeline": wan_animate2_distilled,
    "WanAnimate2ModularPipeline": wan_animate2,
    "WanImageToVideoPipeline": wan_i2v,
    "ZImageControlNetInpaintPipeline": z_control_inpaint,
    "ZImageControlNetPipeline": z_control,
    "ZImageOmniPipeline": z_omni,
}
