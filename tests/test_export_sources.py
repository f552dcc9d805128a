"""Exports in engines that are no packages: their own deciding code, out of checkouts of yours.

`SOURCES=folder make contracts`; the folder may hold checkouts named LightX2V, TensorRT-LLM, ComfyUI-MagCache and
ComfyUI-TeaCache. Their deciding functions are run as they are; models and kernels around them are stand-ins.
"""

from __future__ import annotations

import ast
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from test_export import kernel, schedule
from wheels import only

from adaptcache.engines.formats import export
from adaptcache.schedule.format import Denoiser

SOURCES = Path(os.environ.get("SOURCES") or "/nowhere")
STEPS = 28
PLANS = [[0, 1, 4, 8, 11, 14, 17, 20, 23, 26], [0, 1, 2, 5, 9, 11, 16, 20, 24, 27], list(range(STEPS))]


def checkout(name: str, *inner: str) -> Any:
    """Marks a test that needs a checkout."""
    path = SOURCES / name
    return pytest.mark.skipif(not path.joinpath(*inner).exists(), reason=f"SOURCES has no {name}")


@pytest.fixture(autouse=True)
def paths(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LightX2V", "TensorRT-LLM"):
        monkeypatch.syspath_prepend(str(SOURCES / name))


class Model:
    """A MODEL of ComfyUI with a wrapper around its denoiser."""

    def __init__(self, denoiser: Any) -> None:
        self.denoiser, self.model_options = denoiser, dict[str, Any]()

    def clone(self) -> Model:
        return self

    def get_model_object(self, name: str) -> Any:
        return self.denoiser

    def set_model_unet_function_wrapper(self, wrapper: Any) -> None:
        self.wrapper = wrapper


def computed(model: Model, forward: Any, steps: int, branches: list[list[int]]) -> list[int]:
    """Runs all steps and returns those that went through the blocks of the denoiser.

    Arguments:
        model: With the node on it.
        forward: Calls the denoiser with the latents and the options of a call.
        steps: Of the run.
        branches: Of each call of a step, which are in it: 0 with the prompt, 1 without.
    """
    sigmas, made = torch.linspace(1, 0, steps + 1), list[int]()
    for i in range(steps):
        model.denoiser.ran = 0
        for inside in branches:
            options = {**model.model_options["transformer_options"], "sample_sigmas": sigmas}
            options |= {"cond_or_uncond": inside}
            given = {"input": torch.randn(len(inside), 3, 4), "timestep": sigmas[i : i + 1],
                     "c": {"transformer_options": options}, "cond_or_uncond": inside}  # fmt: skip
            model.wrapper(lambda x, timestep, transformer_options: forward(x, transformer_options), given)
        assert model.denoiser.ran in (0, len(branches))
        if model.denoiser.ran:
            made.append(i)
    return made


def flux() -> Any:
    """Returns what the nodes read of ComfyUI's Flux, with one block that counts its calls."""
    made = SimpleNamespace(ran=0, params=SimpleNamespace(guidance_embed=False, vec_in_dim=4), single_blocks=[])

    def block(*_: Any, img: Any, txt: Any, **__: Any) -> Any:
        made.ran += 1
        return img + 1, txt

    block.img_mod, block.img_norm1 = lambda vec: (SimpleNamespace(scale=0, shift=0), None), lambda img: img
    made.double_blocks, made.forward_orig = [block], None
    made.img_in = made.txt_in = lambda x: x
    made.time_in = made.vector_in = lambda _: torch.zeros(1, 4)
    made.pe_embedder, made.final_layer = lambda ids: ids, lambda img, vec: img
    return made


def flux_forward(denoiser: Any) -> Any:
    ids = torch.zeros(1, 3, 3)
    return lambda x, options: denoiser.forward_orig(
        x, ids, torch.randn(1, 3, 4), ids, torch.ones(1), torch.zeros(1, 4), transformer_options=options
    )


def wan() -> Any:
    made = SimpleNamespace(ran=0, dim=4, freq_dim=4, img_emb=None, forward_orig=None)

    def block(x: Any, **_: Any) -> Any:
        made.ran += 1
        return x + 1

    made.blocks, made.patch_embedding, made.text_embedding = [block], lambda x: x, lambda x: x
    made.time_embedding, made.time_projection = lambda _: torch.zeros(1, 4), lambda _: torch.zeros(1, 24)
    made.head, made.unpatchify = lambda x, e: x, lambda x, grid: x
    return made


def node(folder: str) -> Any:
    """Imports the nodes of a checkout, all of ComfyUI being stand-ins."""
    sys.path.insert(0, str(SOURCES / folder))
    try:
        with only(("comfy", "einops", "nodes"), ("nodes",)) as (module,):
            module.apply_mod = lambda x, *_: x
            module.mm.unet_offload_device = lambda: "cpu"
            return module
    finally:
        sys.path.pop(0)


@checkout("ComfyUI-MagCache", "nodes.py")
@pytest.mark.parametrize("compute", PLANS)
@pytest.mark.parametrize("guided", [False, True])
def test_the_magcache_node_computes_what_is_promised(compute: list[int], guided: bool) -> None:
    carried = schedule(compute, kernel(steps=STEPS), steps=STEPS)
    if guided:
        carried = carried.model_copy(update={"denoiser": Denoiser(class_name="WanTransformer3DModel")})
    exported = export(carried, "comfyui-magcache")
    module, name = node("ComfyUI-MagCache"), "wan2.1_t2v_14B" if guided else "flux"
    module.SUPPORTED_MODELS_MAG_RATIOS.update(eval("{" + exported.text + "}", {"np": np}))
    model = Model(wan() if guided else flux())
    module.MagCache().apply_magcache(model, name, 0.3, 0.1, 6, 0, -1)
    plan = list(np.flatnonzero(exported.plan.computed))
    for branches in ([[1, 0]], [[0, 1]], [[1], [0]]) if guided else ([[0]],):
        forward = flux_forward(model.denoiser)
        if guided:
            forward = lambda x, options: model.denoiser.forward_orig(  # noqa: E731
                x[:, :, None, None], torch.ones(1), torch.zeros(1, 4), transformer_options=options
            )
        for _ in range(2):  # the second run starts afresh
            assert computed(model, forward, STEPS, branches) == plan


@checkout("ComfyUI-TeaCache", "nodes.py")
@pytest.mark.parametrize("calls", [4, 7, 10, 14, 28])
def test_the_teacache_node_computes_every_nth_step(calls: int) -> None:
    exported = export(schedule(list(range(calls)), matched=False, steps=STEPS), "comfyui-teacache")
    module, model = node("ComfyUI-TeaCache"), Model(flux())
    module.SUPPORTED_MODELS_COEFFICIENTS.update(ast.literal_eval("{" + exported.text + "}"))
    module.TeaCache().apply_teacache(model, "flux", 0.4, 0.0, 1.0, "cpu")
    for steps in (STEPS, 20):
        made = computed(model, flux_forward(model.denoiser), steps, [[0]])
        assert made == list(np.flatnonzero(exported.plan.computed))[: len(made)]


LIGHT = "lightx2v.models.networks.{}.infer.feature_caching.transformer_infer"


@checkout("LightX2V", "lightx2v")
@pytest.mark.parametrize("compute", PLANS)
@pytest.mark.parametrize("kind", ["wan", "hunyuan_video"])
def test_lightx2v_computes_what_is_promised(compute: list[int], kind: str) -> None:
    exported = export(schedule(compute, matched=False, steps=STEPS).model_copy(
        update={"denoiser": Denoiser(class_name="WanTransformer3DModel")}), "lightx2v")  # fmt: skip
    names = {"wan": "WanTransformerInferMagCaching", "hunyuan_video": "HunyuanVideo15TransformerInferMagCaching"}
    with only(("lightx2v", "lightx2v_platform"), (LIGHT.format(kind),)) as (module,):
        made = [list[int](), list[int]()]

        class Watched(getattr(module, names[kind])):  # type: ignore[misc]
            config, clean_cuda_cache = json.loads(exported.text), False

            def infer_calculating(self, *_: Any) -> None:
                made[self.scheduler.infer_condition].append(self.scheduler.step_index)

            def infer_using_cache(self, *_: Any) -> None:
                pass

            def infer_final_layer(self, *_: Any) -> None:
                pass

        engine = Watched(Watched.config)
        for step in range(STEPS):
            for condition in (True, False):
                engine.scheduler = SimpleNamespace(step_index=step, infer_condition=condition)
                run = engine.infer_main_blocks if kind == "wan" else engine.infer
                run(None, SimpleNamespace(x=None))
        assert made == [compute, compute]


@checkout("TensorRT-LLM", "tensorrt_llm")
@pytest.mark.parametrize("calls", [4, 7, 10, 14, 28])
def test_tensorrt_llm_computes_every_nth_step_and_the_last(calls: int) -> None:
    exported = export(schedule(list(range(calls)), matched=False, steps=STEPS), "tensorrt-llm")
    config = yaml.safe_load(exported.text)["cache_config"]
    assert config.pop("cache_backend") == "teacache"
    with only(("tensorrt_llm",), ("tensorrt_llm._torch.visual_gen.cache.teacache",)) as (module,):
        made = list[tuple[int, Any]]()

        class Denoiser:
            def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
                made.append((step, self._cache_branch))
                return hidden_states + 1

        def embed(own: Any, timestep: torch.Tensor, **_: Any) -> torch.Tensor:
            return torch.cos(timestep * torch.arange(1.0, 5))[None]

        config_of = module.ExtractorConfig("Denoiser", embed, return_dict_default=False)
        module.register_extractor_from_config(config_of)
        denoiser = Denoiser()
        backend = module.TeaCacheBackend(SimpleNamespace(**config))
        backend.enable(denoiser)
        for steps in (STEPS, 20):  # the second run starts afresh
            backend.refresh(steps)
            made.clear()
            for step in range(steps):
                for denoiser._cache_branch in ("cond", "uncond"):
                    out = denoiser.forward(torch.zeros(1, 4), timestep=torch.tensor([1 - step / steps]))
                    assert torch.equal(out, torch.ones(1, 4))
            plan = {*np.flatnonzero(exported.plan.computed[:steps]), steps - 1}
            assert made == [(step, branch) for step in sorted(plan) for branch in ("cond", "uncond")]
        assert backend.get_stats()["cached"] == 2 * (steps - len(plan))
