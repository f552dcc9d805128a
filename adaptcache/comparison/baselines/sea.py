"""SeaCache: diffusers' where it applies, and ours after it where it does not."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ...engines.diffusers.watch import denoisers_of, plain
from ...schedule.rule import Rule
from .base import Case, Knobs, Peer, Ready
from .magcache import cached
from .zoo import Zoo, rule_of

__all__ = ["Sea", "SeaHere"]

THRESHOLDS = (0.05, 0.15, 0.4, 1.0, 3.0)


class Sea(Peer):
    """Spectral-evolution-aware cache, https://arxiv.org/abs/2602.18993"""

    name = "SeaCache"
    about = "diffusers; decides for each prompt"
    alone = True
    fine = "threshold"

    def missing(self, case: Case) -> str | None:
        import diffusers

        kind = plain(case.pipe)
        if not hasattr(diffusers, "SeaCacheConfig"):
            return f"diffusers {diffusers.__version__} has none: pip install -U diffusers"
        # Pipelines that do not tell the denoiser where they are run in full, whatever is set.
        if "sigma" not in inspect.getsource(kind.__call__).partition("cache_context")[2]:
            return (
                f"not for {kind.__name__}, which does not tell its denoiser step and sigma; in diffusers "
                f"{diffusers.__version__} Wan (text to video) and Cosmos 3 do"
            )
        return None

    def settings(self, case: Case) -> list[Knobs]:
        return [
            {"threshold": threshold, "residual_order": order, "max_consecutive_cached": 0}
            for threshold in THRESHOLDS
            for order in (0, 1)
        ]

    @contextmanager
    def applied(self, case: Case, knobs: Knobs) -> Iterator[Ready]:
        from diffusers import SeaCacheConfig

        with cached(case.pipe, SeaCacheConfig(**knobs)):
            yield Ready(case.call)


class SeaHere(Zoo):
    """The same decision on the latents, in front of the denoiser."""

    name = "SeaCache (zoo)"
    about = "our zoo, on the latents; decides for each prompt"
    alone = True
    fine = "threshold"

    def settings(self, case: Case) -> list[Knobs]:
        return [
            {"threshold": threshold, "order": order, **tokens(case)}
            for threshold in THRESHOLDS
            for order in (0, 1)
        ]

    def rule(self, case: Case, knobs: Knobs) -> Rule:
        return rule_of("seacache", **knobs)


def tokens(case: Case) -> dict[str, Any]:
    """Returns the positions of the tokens, for pipelines whose latents are a sequence of square patches."""
    packs = getattr(case.pipe, "_pack_latents", None)
    size = [case.call.arguments.get(name) for name in ("height", "width")]
    if packs is None or None in size:
        return {}
    sample = getattr(denoisers_of(case.pipe)[0], "config", {})
    assert sample is not None
    patch = 2 * int(getattr(case.pipe, "vae_scale_factor", 8))
    return {"grid": tuple(int(side) // patch for side in size if side)}
