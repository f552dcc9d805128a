"""diffusers' FirstBlockCache: compute the first block, and the rest only when its output has changed."""

from typing import Any

from .base import Case, DiffusersCache, Params, product_of

THRESHOLDS = (0.02, 0.05, 0.1, 0.2, 0.4, 1.0)


class FirstBlock(DiffusersCache):
    """First-block cache, after ParaAttention (2024), https://github.com/chengzeyi/ParaAttention"""

    name = "FirstBlockCache"
    about = "diffusers; decides for each prompt"
    per_prompt = probes = True
    threshold = "threshold"

    def propose(self, case: Case) -> list[Params]:
        return product_of(threshold=THRESHOLDS)

    def build_config(self, case: Case, params: Params) -> Any:
        from diffusers import FirstBlockCacheConfig

        return FirstBlockCacheConfig(**params)
