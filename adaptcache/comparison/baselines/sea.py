"""SeaCache: diffusers' where it applies, and ours after it where it does not."""

import inspect
from typing import Any

from .base import Case, DiffusersCache, Params, product_of
from .zoo import RuleBaseline

THRESHOLDS = (0.05, 0.15, 0.4, 1.0, 3.0)


class Sea(DiffusersCache):
    """Spectral-evolution-aware cache, https://arxiv.org/abs/2602.18993"""

    name = "SeaCache"
    about = "diffusers; decides for each prompt"
    per_prompt = True
    threshold = "threshold"

    def find_obstacle(self, case: Case) -> str | None:
        import diffusers

        kind, version = type(case.pipe), f"diffusers {diffusers.__version__}"
        if not hasattr(diffusers, "SeaCacheConfig"):
            return f"{version} has none: pip install -U diffusers"
        # Pipelines that do not give the denoiser step and sigma are run in full, whatever is set.
        if "sigma" not in inspect.getsource(kind.__call__).partition("cache_context")[2]:
            return (
                f"not for {kind.__name__}, which does not give its denoiser step and sigma; in {version} "
                "Wan (text to video) and Cosmos 3 do"
            )
        return super().find_obstacle(case)

    def propose(self, case: Case) -> list[Params]:
        return product_of(threshold=THRESHOLDS, residual_order=(0, 1), max_consecutive_cached=(0,))

    def build_config(self, case: Case, params: Params) -> Any:
        from diffusers import SeaCacheConfig

        return SeaCacheConfig(**params)


class SeaHere(RuleBaseline):
    """The same decision on the latents, in front of the denoiser."""

    name = "SeaCache (zoo)"
    method = "seacache"
    about = "our zoo, on the latents; decides for each prompt"
    per_prompt = True
    threshold = "threshold"

    def propose(self, case: Case) -> list[Params]:
        place = find_token_grid(case)
        return [{**params, **place} for params in product_of(threshold=THRESHOLDS, order=(0, 1))]


def find_token_grid(case: Case) -> dict[str, Any]:
    """Returns the positions of the tokens, for pipelines whose latents are a sequence of square patches."""
    size = [case.setup.call.pipe_kwargs.get(name) for name in ("height", "width")]
    if not hasattr(case.pipe, "_pack_latents") or None in size:
        return {}
    patch = 2 * int(getattr(case.pipe, "vae_scale_factor", 8))
    return {"grid": tuple(int(side) // patch for side in size if side)}
