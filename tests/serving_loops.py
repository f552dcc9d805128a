"""The loops of serving engines: true classes from their wheels, or stand-ins of the same interface.

A loop runs what a pipeline of diffusers was recorded to do: the same denoiser, noise, conditions and grid, so that its
latents can be compared with those of `attach`.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from wheels import only

GEN = "sglang.multimodal_gen."
SGLANG_ROOTS = (
    "sglang", "orjson", "zmq", "triton", "flashinfer", "sgl_kernel", "cache_dit", "imageio", "moviepy", "fastapi",
    "aiohttp", "msgspec", "uvloop", "nvtx", "yunchang", "remote_pdb", "pybase64",
)  # fmt: skip
SGLANG = (
    "sglang.srt.plugins.hook_registry", f"{GEN}runtime.platforms.plugins", f"{GEN}runtime.distributed.cfg_policy",
    f"{GEN}configs.sample.sampling_params", f"{GEN}runtime.pipelines_core.schedule_batch",
    f"{GEN}runtime.pipelines_core.stages.base", f"{GEN}runtime.pipelines_core.stages.denoising",
)  # fmt: skip
VLLM_ROOTS = (
    "vllm_omni", "vllm", "aenum", "cache_dit", "zmq", "msgspec", "triton", "omegaconf", "fastapi", "av", "soundfile",
    "librosa", "openai", "cloudpickle",
)  # fmt: skip
OMNI = "vllm_omni.diffusion."
VLLM = (
    f"{OMNI}data", f"{OMNI}cache.base", f"{OMNI}cache.selector", f"{OMNI}distributed.cfg_parallel",
    f"{OMNI}worker.request_batch", "vllm_omni.inputs.data", f"{OMNI}models.flux.pipeline_flux",
)  # fmt: skip


def installed(name: str) -> bool:
    """Whether the wheel of an engine is on the path."""
    return importlib.util.find_spec(name) is not None


@dataclass
class Recorded:
    """What a run of a pipeline was: all that a loop of another engine needs to make the same one."""

    transformer: nn.Module
    scheduler: Any
    latents: Tensor
    branches: list[dict[str, Any]]
    guidance: float
    final: Tensor
    embedded: Tensor | None = None

    def copy_of_scheduler(self) -> Any:
        """The scheduler as it is when its timesteps have just been set."""
        scheduler = copy.deepcopy(self.scheduler)
        scheduler._step_index = scheduler._begin_index = None
        scheduler.scale_model_input = lambda x, t: x  # SGLang's schedulers have it all
        return scheduler


def record(pipe: Any, steps: int, guidance: float = 1.0, seed: int = 0, **arguments: Any) -> Recorded:
    """Runs a FluxPipeline in full and notes what its denoiser was called with."""
    seen: list[dict[str, Any]] = []

    def called(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        seen.append(dict(kwargs))

    hook = pipe.transformer.register_forward_pre_hook(called, with_kwargs=True)
    try:
        final = pipe(
            **arguments, num_inference_steps=steps, true_cfg_scale=guidance, output_type="latent",
            generator=torch.Generator().manual_seed(seed), return_dict=False,
        )[0]  # fmt: skip
    finally:
        hook.remove()
    latents = seen[0]["hidden_states"]
    branches = [call for call in seen[: len(seen) // steps]]
    own = ("hidden_states", "timestep", "guidance", "return_dict")
    rest = [{k: v for k, v in one.items() if k not in own} for one in branches]
    return Recorded(pipe.transformer, pipe.scheduler, latents, rest, guidance, final, seen[0]["guidance"])


# SGLang


class CFGBranch(SimpleNamespace):
    """A branch of guidance, as SGLang's."""


class StandInStage:
    """The stage of SGLang: two methods, with its names of arguments."""

    def forward(self, batch: Any, server_args: Any) -> Any:
        ctx = self._prepare_denoising_loop(batch, server_args)
        for index, t in enumerate(ctx.timesteps):
            u = self._predict_noise_with_cfg(
                current_model=self.transformer, latent_model_input=ctx.latents,
                timestep=self.expand_timestep_before_forward(None, None, t), batch=batch, timestep_index=index,
                attn_metadata=None, target_dtype=ctx.target_dtype, current_guidance_scale=batch.guidance_scale,
                cfg_policy=ctx.cfg_policy, cfg_gate_state=ctx.extra.get("cfg_gate_state"), server_args=server_args,
                guidance=ctx.guidance, latents=ctx.latents,
            )  # fmt: skip
            ctx.latents = ctx.scheduler.step(u, t, ctx.latents, return_dict=False)[0]
        batch.latents = ctx.latents
        return batch

    def _predict_noise_with_cfg(
        self, current_model, latent_model_input, timestep, batch, timestep_index, attn_metadata, target_dtype,
        current_guidance_scale, cfg_policy, cfg_gate_state, server_args, guidance, latents,
    ):  # fmt: skip
        outputs = [
            self._predict_noise(current_model, latent_model_input, timestep, target_dtype, guidance, **branch.kwargs)
            for branch in cfg_policy.branches
        ]
        return outputs[0] if len(outputs) == 1 else outputs[1] + current_guidance_scale * (outputs[0] - outputs[1])

    def _cache_dit_requested_for_batch(self, batch: Any) -> bool:
        return False


class StandInRegistry:
    """SGLang's registry of hooks, for methods of one class."""

    def __init__(self, stage: type) -> None:
        self.stage = stage

    def register(self, target: str, hook: Any, kind: Any) -> None:
        assert kind == "around"
        name = target.rsplit(".", 1)[1]
        original = getattr(self.stage, name)
        setattr(self.stage, name, lambda *args, **kwargs: hook(original, *args, **kwargs))


@dataclass
class Sampling:
    """What a request of an engine says."""

    quality: str | None = None
    guidance_scale: float = 1.0
    true_cfg_scale: float | None = None
    extra_args: dict[str, Any] = field(default_factory=dict)
    height: int | None = None
    width: int | None = None


@dataclass
class SGLangLoop:
    """Runs recorded runs through a denoising stage."""

    stage: type
    policy: Any  # the class of guidance policies
    context: Any  # the class of what a loop keeps
    hooks: Any  # the registry
    around: Any

    def __call__(self, run: Recorded, quality: Any = None, watch: Any = None, **changes: Any) -> Tensor:
        """Returns the final latents of one request."""
        loop, sampling = self, Sampling(guidance_scale=run.guidance, quality=changes.pop("word", "lossless"))
        scheduler = run.copy_of_scheduler()

        class Stage(self.stage):  # type: ignore[name-defined]
            transformer, transformer_2, current_use_nvtx = run.transformer, None, False

            def __init__(self) -> None:
                pass

            def _prepare_denoising_loop(self, batch: Any, server_args: Any) -> Any:
                branches = [CFGBranch(kwargs=one, configure_batch=lambda batch: None) for one in run.branches]
                empty = {name: None for name in (
                    "image_kwargs", "pos_cond_kwargs", "neg_cond_kwargs", "boundary_timestep", "z", "seq_len",
                    "reserved_frames_mask",
                )}  # fmt: skip
                policy = loop.policy()
                policy.branches = branches
                return loop.context(
                    scheduler=scheduler, extra_step_kwargs={}, target_dtype=run.latents.dtype, autocast_enabled=False,
                    timesteps=scheduler.timesteps, num_inference_steps=len(scheduler.timesteps), num_warmup_steps=0,
                    latents=run.latents, guidance=run.embedded, is_warmup=False, cfg_policy=policy,
                    extra=dict(changes), **empty,
                )  # fmt: skip

            def _before_denoising_loop(self, ctx: Any, batch: Any, server_args: Any) -> None:
                pass

            def _finalize_denoising_loop(self, ctx: Any, batch: Any, server_args: Any) -> None:
                batch.latents = ctx.latents

            def _predict_noise(self, current_model, latent_model_input, timestep, target_dtype, guidance, **kwargs):
                if watch is not None:
                    watch()
                call = {"hidden_states": latent_model_input, "timestep": timestep, "guidance": guidance, **kwargs}
                return current_model(**call, return_dict=False)[0]

            def expand_timestep_before_forward(self, batch: Any, server_args: Any, t: Tensor, *_: Any) -> Tensor:
                return (t / 1000).expand(run.latents.shape[0])

            def post_forward_for_ti2v_task(self, batch: Any, args: Any, mask: Any, latents: Tensor, z: Any) -> Any:
                return latents

            def _select_and_manage_model(self, **_: Any) -> Any:
                return run.transformer, run.guidance

            def _prepare_step_attn_metadata(self, **_: Any) -> None:
                return None

            def _cache_dit_requested_for_batch(self, batch: Any) -> bool:
                return bool(changes.get("cache_dit"))

            def _apply_nvtx_gate(self, is_warmup: bool) -> bool:
                return False

            def _offload_for_torch_compile_warmup(self, batch: Any) -> Any:
                return nullcontext()

            def _finish_active_component_use(self) -> None:
                pass

            def progress_bar(self, **_: Any) -> Any:
                return nullcontext(SimpleNamespace(update=lambda: None))

            def step_profile(self) -> None:
                pass

            def log_info(self, *_: Any) -> None:
                pass

        config = SimpleNamespace(
            embedded_cfg_scale=None, get_classifier_free_guidance_scale=lambda batch, scale: scale,
            slice_noise_pred=lambda u, latents: u, postprocess_cfg_noise=lambda batch, u, cond: u,
        )  # fmt: skip
        server_args = SimpleNamespace(
            pipeline_config=config, comfyui_mode=False, enable_cfg_parallel=False, disable_autocast=True
        )
        extra = {} if quality is None else {"diffusers_kwargs": {"adaptcache": quality}}
        batch = SimpleNamespace(
            is_warmup=False, extra=extra, sampling_params=sampling, scheduler=scheduler, request_id="r",
            timesteps=scheduler.timesteps, do_classifier_free_guidance=len(run.branches) > 1, image_latent=None,
            guidance_scale=run.guidance, cfg_normalization=0, guidance_rescale=0, metrics=None, perf_dump_path=None,
            return_trajectory_latents=False,
        )  # fmt: skip
        with torch.no_grad():
            Stage().forward(batch, server_args)
        return batch.latents


@contextmanager
def sglang(true: bool) -> Iterator[SGLangLoop]:
    """Opens the loop of SGLang, with stand-ins or the wheel's classes."""
    if not true:
        stage = type("DenoisingStage", (StandInStage,), {})
        yield SGLangLoop(stage, SimpleNamespace, SimpleNamespace, StandInRegistry(stage), "around")
        return
    with only(SGLANG_ROOTS, SGLANG) as modules:
        _, plugins, policies, _, _, _, denoising = modules
        hooks = plugins.HookRegistry
        yield SGLangLoop(
            denoising.DenoisingStage, policies.CFGPolicy, denoising.DenoisingContext, hooks, plugins.HookType.AROUND
        )


# vLLM-Omni


class StandInMixin:
    """The guidance methods of vLLM-Omni's pipelines."""

    def predict_noise_maybe_with_cfg(
        self, do_true_cfg, true_cfg_scale, positive_kwargs, negative_kwargs, cfg_normalize=True, output_slice=None,
        kwargs=None,
    ):  # fmt: skip
        positive = self.predict_noise(**positive_kwargs)
        if not do_true_cfg:
            return positive
        negative = self.predict_noise(**negative_kwargs)
        return negative + true_cfg_scale * (positive - negative)

    def scheduler_step_maybe_with_cfg(
        self, noise_pred, t, latents, do_true_cfg, per_request_scheduler=None, generator=None
    ):
        return (per_request_scheduler or self.scheduler).step(noise_pred, t, latents, return_dict=False)[0]

    def predict_noise(self, **kwargs):
        return self.transformer(**kwargs)[0]

    def diffuse(
        self, prompt_embeds, pooled_prompt_embeds, negative_prompt_embeds, negative_pooled_prompt_embeds, latents,
        latent_image_ids, text_ids, negative_text_ids, timesteps, do_true_cfg, guidance, true_cfg_scale,
        cfg_normalize=False,
    ):  # fmt: skip
        for t in timesteps:
            own = {"hidden_states": latents, "timestep": t.expand(latents.shape[0]) / 1000, "guidance": guidance,
                   "img_ids": latent_image_ids, "return_dict": False}  # fmt: skip
            branches = [
                {**own, "pooled_projections": pooled, "encoder_hidden_states": words, "txt_ids": ids}
                for pooled, words, ids in (
                    (pooled_prompt_embeds, prompt_embeds, text_ids),
                    (negative_pooled_prompt_embeds, negative_prompt_embeds, negative_text_ids),
                )
            ]
            u = self.predict_noise_maybe_with_cfg(do_true_cfg, true_cfg_scale, *branches, cfg_normalize)
            latents = self.scheduler_step_maybe_with_cfg(u, t, latents, do_true_cfg)
        return latents


@dataclass
class VLLMLoop:
    """Runs recorded runs through a pipeline of vLLM-Omni."""

    pipeline: type
    modules: dict[str, Any]
    sampling: Any = Sampling

    def serve(self, run: Recorded, watch: Any = None) -> Any:
        """Returns a pipeline whose forward makes the recorded run."""

        class FluxPipeline(self.pipeline):  # type: ignore[name-defined]
            def __init__(self) -> None:
                nn.Module.__init__(self)
                self.transformer, self.scheduler = run.transformer, run.copy_of_scheduler()
                self._interrupt, self._joint_attention_kwargs = False, {}

            def predict_noise(self, **kwargs: Any) -> Tensor:
                if watch is not None:
                    watch()
                return self.transformer(**kwargs)[0]

            def forward(self, batch: Any) -> Tensor:
                made = getattr(batch, "run", run)
                self.scheduler = made.copy_of_scheduler()
                positive, negative = made.branches[0], (*made.branches, {})[1]
                with torch.no_grad():
                    return self.diffuse(
                        positive["encoder_hidden_states"], positive["pooled_projections"],
                        negative.get("encoder_hidden_states"), negative.get("pooled_projections"), made.latents,
                        positive["img_ids"], positive["txt_ids"], negative.get("txt_ids"), self.scheduler.timesteps,
                        len(made.branches) > 1, made.embedded, made.guidance,
                    )  # fmt: skip

        return FluxPipeline()

    def batch(self, wanted: Any = None, run: Recorded | None = None, **changes: Any) -> Any:
        """Returns the batch of one request."""
        extra = {} if wanted is None else {"adaptcache": wanted}
        params = self.sampling(extra_args=extra, **changes)
        own = {} if run is None else {"run": run}
        return SimpleNamespace(sampling_params_list=[params], request_ids=["r"], **own)


@contextmanager
def vllm_omni(true: bool) -> Iterator[VLLMLoop]:
    """Opens the loop of vLLM-Omni, with stand-ins or the wheel's classes."""
    if not true:
        yield VLLMLoop(type("Pipeline", (StandInMixin, nn.Module), {}), {})
        return
    with only(VLLM_ROOTS, VLLM) as modules:
        named = dict(zip(VLLM, modules, strict=True))
        named[f"{OMNI}distributed.cfg_parallel"].is_cfg_group_initialized = lambda: False
        pipeline = named[f"{OMNI}models.flux.pipeline_flux"].FluxPipeline
        yield VLLMLoop(pipeline, named, named["vllm_omni.inputs.data"].OmniDiffusionSamplingParams)
