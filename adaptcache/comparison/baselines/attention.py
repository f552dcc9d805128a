"""diffusers' caches of attention: Pyramid Attention Broadcast and FasterCache."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from ...engines.diffusers.watch import denoisers_of
from .base import Case, Knobs, Peer, Ready
from .magcache import cached

__all__ = ["FasterCache", "Pyramid"]

SKIPS = (2, 4, 8, 64)  # attention is computed at every so many steps
RANGES = ((100, 800), (-1, 950), (-1, 1001))  # of timesteps


class Pyramid(Peer):
    """Reuses what attentions returned; all else runs at every step.

    References:
        Zhao et al., 2024, https://arxiv.org/abs/2408.12588
    """

    name = "PAB"
    about = "diffusers, attention outputs"

    def missing(self, case: Case) -> str | None:
        if not hasattr(denoisers_of(case.pipe)[0], "enable_cache"):
            return "this denoiser has no enable_cache"
        if not hasattr(case.pipe, "current_timestep"):
            return f"{type(case.pipe).__name__} has no current_timestep"
        if case.branches > 1:
            return f"keeps one state for all of the {case.branches} denoiser calls that guidance makes a step"
        return None

    def settings(self, case: Case) -> list[Knobs]:
        return [
            {"spatial_attention_block_skip_range": skip, "spatial_attention_timestep_skip_range": between}
            for skip, between in itertools.product(SKIPS, RANGES)
        ]

    @contextmanager
    def applied(self, case: Case, knobs: Knobs) -> Iterator[Ready]:
        from diffusers import PyramidAttentionBroadcastConfig

        pipe = case.pipe
        own = {**knobs, "cross_attention_block_skip_range": knobs["spatial_attention_block_skip_range"]}
        own["cross_attention_timestep_skip_range"] = knobs["spatial_attention_timestep_skip_range"]
        config = PyramidAttentionBroadcastConfig(
            **own, current_timestep_callback=lambda: pipe.current_timestep
        )
        with cached(pipe, config):
            yield Ready(case.call)


class FasterCache(Pyramid):
    """Extrapolates what attentions returned; with guidance in one batch, also its unconditional half.

    References:
        Lv et al., 2024, https://arxiv.org/abs/2410.19355
    """

    name = "FasterCache"
    about = "diffusers, attention outputs"

    def settings(self, case: Case) -> list[Knobs]:
        return [
            {"spatial_attention_block_skip_range": skip, "spatial_attention_timestep_skip_range": between,
             "weight": weight}
            for skip, between, weight in itertools.product(SKIPS, RANGES[:2], (0.0, 0.5))
        ]  # fmt: skip

    @contextmanager
    def applied(self, case: Case, knobs: Knobs) -> Iterator[Ready]:
        from diffusers import FasterCacheConfig

        pipe, own = case.pipe, dict(knobs)
        weight = own.pop("weight")
        logging.getLogger("diffusers.hooks.faster_cache").setLevel(
            logging.ERROR
        )  # it is experimental, it says
        config = FasterCacheConfig(
            **own, is_guidance_distilled=True, attention_weight_callback=lambda _: weight,
            current_timestep_callback=lambda: pipe.current_timestep,
        )  # fmt: skip
        with cached(pipe, config):
            yield Ready(case.call)
