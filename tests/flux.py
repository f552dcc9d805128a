"""A FluxPipeline with a tiny transformer and no text encoders: prompts come as embeddings."""

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel


def pipeline(seed=0, double=2, single=2):
    """Returns the pipeline, in float32 on the CPU."""
    torch.manual_seed(seed)
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=double, num_single_layers=single, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=16, pooled_projection_dim=8, axes_dims_rope=(4, 6, 6),
        guidance_embeds=True,
    ).eval()  # fmt: skip
    for parameter in transformer.parameters():  # so that blocks change what goes through them
        parameter.data += 0.05 * torch.randn_like(parameter)
    vae = AutoencoderKL(
        block_out_channels=(4,), layers_per_block=1, latent_channels=4, norm_num_groups=1, shift_factor=0.0,
        use_quant_conv=False, use_post_quant_conv=False,
    )  # fmt: skip
    pipe = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(), vae=vae, transformer=transformer, text_encoder=None,
        tokenizer=None, text_encoder_2=None, tokenizer_2=None,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run(pipe, steps=12, seed=0, batch=1):
    """Returns the final latents."""
    generator = torch.Generator().manual_seed(100 + seed)
    return pipe(
        prompt_embeds=torch.randn(batch, 5, 16, generator=generator),
        pooled_prompt_embeds=torch.randn(batch, 8, generator=generator),
        num_inference_steps=steps, height=16, width=16, output_type="latent", return_dict=False,
        generator=torch.Generator().manual_seed(seed),
    )[0]  # fmt: skip
