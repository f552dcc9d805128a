"""The export for stock diffusers, in every kind of pipeline whose blocks diffusers can cache."""

from __future__ import annotations

import json
from typing import Any

import pytest
from diffusers import MagCacheConfig
from diffusers.hooks._common import _ALL_TRANSFORMER_BLOCK_IDENTIFIERS as BLOCKS

from adaptcache.engines.formats import export
from adaptcache.forecasts.extrapolate import Extrapolate
from tests.pipelines.table import built, generated, grid_of, planned

CACHED = (
    "Flux", "Flux, two branches", "Flux image-to-image", "Flux ControlNet", "Flux Kontext", "Flux inpainting",
    "Flux 2", "Qwen-Image", "CogView 4", "Wan 2.1", "HunyuanVideo", "CogVideoX", "Mochi", "LTX-Video",
)  # fmt: skip
FAST = ("Flux", "Qwen-Image", "Wan 2.1")
PLAN = [0, 2, 3]
SLOW = pytest.mark.slow


def deepened(name: str) -> Any:
    """Builds a pipeline with more than one block: with one, diffusers' MagCache never counts a skip."""
    setup = built(name)
    denoiser = setup.pipe.transformer
    if denoiser.config["num_layers"] == 1 and not denoiser.config.get("num_single_layers"):
        deeper = type(denoiser).from_config({**dict(denoiser.config), "num_layers": 3})
        setup.pipe.transformer = deeper.eval()
    return setup


@pytest.mark.parametrize("name", [name if name in FAST else pytest.param(name, marks=SLOW) for name in CACHED])
def test_the_planned_steps_compute_and_no_other(name: str) -> None:
    setup = deepened(name)
    denoiser = setup.pipe.transformer
    steps = len(grid_of(setup))
    exported = export(planned(setup, PLAN, Extrapolate(order=0)), "diffusers")
    denoiser.enable_cache(MagCacheConfig(**json.loads(exported.text)))
    attention = next(
        part for path, part in denoiser.named_modules() if path.split(".")[0] in BLOCKS and "attn" in path
    )
    ran, made = [], []
    attention.register_forward_hook(lambda *_: ran.append(True))
    denoiser.register_forward_hook(lambda *_: (made.append(bool(ran)), ran.clear()) and None)
    generated(setup)
    branches = len(made) // steps
    assert made == [step in PLAN for step in range(steps) for _ in range(branches)]


@pytest.mark.parametrize("name", ["Stable Diffusion 1.5", "Sana"])
def test_where_diffusers_has_no_cache_there_is_nothing_to_enable(name: str) -> None:
    pipe = built(name).pipe  # when this fails, docs/engines.md has good news to tell
    denoiser = getattr(pipe, "transformer", None) or pipe.unet
    assert not hasattr(denoiser, "enable_cache")
