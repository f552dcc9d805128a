"""diffusers' FirstBlockCache: compute the first block, and the rest only when its output has changed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ...engines.diffusers.watch import denoisers_of
from .base import Case, Knobs, Peer, Ready
from .magcache import cached

__all__ = ["FirstBlock"]

THRESHOLDS = (0.02, 0.05, 0.1, 0.2, 0.4, 1.0)


class FirstBlock(Peer):
    """First-block cache, after ParaAttention (2024), https://github.com/chengzeyi/ParaAttention"""

    name = "FirstBlockCache"
    about = "diffusers; decides for each prompt"
    alone = True
    fine = "threshold"

    def missing(self, case: Case) -> str | None:
        if not hasattr(denoisers_of(case.pipe)[0], "enable_cache"):
            return "this denoiser has no enable_cache"
        return None

    def settings(self, case: Case) -> list[Knobs]:
        return [{"threshold": threshold} for threshold in THRESHOLDS]

    @contextmanager
    def applied(self, case: Case, knobs: Knobs) -> Iterator[Ready]:
        from diffusers import FirstBlockCacheConfig

        with cached(case.pipe, FirstBlockCacheConfig(**knobs)):
            yield Ready(case.call)
