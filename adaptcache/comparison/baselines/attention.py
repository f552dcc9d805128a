"""diffusers' caches of attention: Pyramid Attention Broadcast and FasterCache."""

import logging
from typing import Any

from .base import Case, DiffusersCache, Params, product_of

SKIPS = (2, 4, 8, 64)  # attention is computed at every so many steps
RANGES = ((100, 800), (-1, 950), (-1, 1001))  # of timesteps
SKIP, BETWEEN = "spatial_attention_block_skip_range", "spatial_attention_timestep_skip_range"


class Pyramid(DiffusersCache):
    """Reuses what attentions returned; all else runs at every step.

    References:
        Zhao et al., 2024, https://arxiv.org/abs/2408.12588
    """

    name = "PAB"
    about = "diffusers, attention outputs"

    def find_obstacle(self, case: Case) -> str | None:
        if obstacle := super().find_obstacle(case):
            return obstacle
        if not hasattr(case.pipe, "current_timestep"):
            return f"{type(case.pipe).__name__} has no current_timestep"
        if case.branches > 1:
            return f"keeps one state for all of the {case.branches} denoiser calls that guidance makes a step"
        return None

    def propose(self, case: Case) -> list[Params]:
        return product_of(**{SKIP: SKIPS, BETWEEN: RANGES})

    def build_config(self, case: Case, params: Params) -> Any:
        from diffusers import PyramidAttentionBroadcastConfig

        cross = {name.replace("spatial", "cross"): value for name, value in params.items()}
        return PyramidAttentionBroadcastConfig(
            **params, **cross, current_timestep_callback=lambda: case.pipe.current_timestep
        )


class FasterCache(Pyramid):
    """Extrapolates what attentions returned; with guidance in one batch, also its unconditional half.

    References:
        Lv et al., 2024, https://arxiv.org/abs/2410.19355
    """

    name = "FasterCache"

    def propose(self, case: Case) -> list[Params]:
        return product_of(**{SKIP: SKIPS, BETWEEN: RANGES[:2], "weight": (0.0, 0.5)})

    def build_config(self, case: Case, params: Params) -> Any:
        from diffusers import FasterCacheConfig

        own = dict(params)
        weight = own.pop("weight")
        # It warns of being experimental each time.
        logging.getLogger("diffusers.hooks.faster_cache").setLevel(logging.ERROR)
        return FasterCacheConfig(
            **own, is_guidance_distilled=True, attention_weight_callback=lambda _: weight,
            current_timestep_callback=lambda: case.pipe.current_timestep,
        )  # fmt: skip
