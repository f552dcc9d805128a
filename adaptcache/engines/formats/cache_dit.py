"""cache-dit: a steps computation mask in the YAML that `cache_dit.load_configs` reads."""

from __future__ import annotations

from .mask import Exported, Reuse

__all__ = ["cache_dit"]

USE = """\
import cache_dit

cache_dit.enable_cache(pipe, **cache_dit.load_configs("{path}"))
# given a transformer alone, before each run: cache_dit.refresh_context(transformer, num_inference_steps={n})
"""


def cache_dit(reuse: Reuse) -> Exported:
    """Returns the YAML."""
    mask = reuse.best()
    # Its warm-up is off: the mask says all, and a longer warm-up would win over it.
    text = (
        "cache_config:\n"
        "  Fn_compute_blocks: 1\n"
        "  Bn_compute_blocks: 0\n"
        "  max_warmup_steps: 0\n"
        f"  num_inference_steps: {mask.steps}\n"
        f"  steps_computation_mask: [{', '.join(map(str, mask.computed))}]\n"
        "  steps_computation_policy: static\n"
    )
    return Exported(
        "cache-dit", ".yaml", text, USE.replace("{n}", str(mask.steps)), mask,
        lost=(*mask.lost, "a little speed: the first block runs at skipped steps too"),
        expects=(f"exactly {mask.steps} steps",),
    )  # fmt: skip
