"""TensorRT-LLM: every n-th step, as a TeaCache whose polynomial is constant.

It takes no mask. A constant polynomial adds the same distance at every step, whatever the input, so the
threshold is crossed every n steps.
"""

from __future__ import annotations

from .mask import Exported, Reuse

__all__ = ["constant", "tensorrt_llm"]

THRESHOLD = 0.2


def constant(interval: int, threshold: float = THRESHOLD) -> list[float]:
    """Returns the coefficients, highest order first, that cross a threshold every `interval` steps."""
    return [0.0, 0.0, 0.0, 0.0, threshold / (interval - 0.5)]  # half a step: sums are not exact


def tensorrt_llm(reuse: Reuse) -> Exported:
    """Returns the YAML of `cache_config`."""
    interval, mask = reuse.every(last=True)
    coefficients = ", ".join(f"{value:g}" for value in constant(interval))
    text = (
        "cache_config:\n"
        "  cache_backend: teacache\n"
        f"  teacache_thresh: {THRESHOLD}\n"
        "  use_ret_steps: false\n"
        f"  coefficients: [{coefficients}]\n"
    )
    return Exported(
        "tensorrt-llm", ".yaml", text, "# cache_config of VisualGenArgs: merge {path} into its YAML\n", mask,
        lost=mask.lost,
        expects=(f"any number of steps: every {interval}th, and the last, are computed",),
    )  # fmt: skip
