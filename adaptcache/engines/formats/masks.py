"""Which steps the settings of another engine compute. What its code decides in a run is played here."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...errors import ScheduleError
from .magcache import magcache

__all__ = ["mask_of"]

Mask = list[int]


def diffusers(data: Any, steps: int) -> Mask:
    """Reads the arguments of `MagCacheConfig`."""
    n = int(data.get("num_inference_steps", 28))
    first = int(data.get("retention_ratio", 0.2) * n + 0.5)
    return magcache(
        data["mag_ratios"], n, data.get("threshold", 0.06), data.get("max_skip_steps", 3), first
    )  # fmt: skip


def vllm_omni(data: Any, steps: int) -> Mask:
    """Reads `mag_...` settings of vLLM-Omni."""
    n = int(data.get("num_inference_steps", 28))
    first = int(data.get("mag_retention_ratio", 0.1) * n + 0.5)
    longest = data.get("mag_max_skip_steps", 5)
    return magcache(data["mag_ratios"], n, data.get("mag_threshold", 0.24), longest, first)


def lightx2v(data: Any, steps: int) -> Mask:
    """Reads `magcache_...` settings of LightX2V; both branches must agree."""
    n, first = int(data["infer_steps"]), int(data["magcache_retention_ratio"] * data["infer_steps"])
    cond, uncond = (
        magcache(ratios, n, data["magcache_thresh"], data["magcache_K"], first, strict=True)
        for ratios in data["magcache_ratios"]
    )
    return [max(pair) for pair in zip(cond, uncond, strict=True)]


def mag_table(data: Any, steps: int) -> Mask:
    """Reads a table of ComfyUI-MagCache, at the node's largest settings, as the export asks for."""
    return magcache(data["mag_table"], steps, 0.3, 6, int(0.1 * steps))


def cache_dit(data: Any, steps: int) -> Mask:
    """Reads the mask of cache-dit and xDiT."""
    mask = data["steps_computation_mask"]
    if isinstance(mask, str):
        raise ScheduleError(f"the preset {mask!r} is no mask; write out cache_dit.steps_mask(...)")
    return list(mask)


def sglang(data: Any, steps: int) -> Mask:
    """Reads the bins of SGLang."""
    compute, cache = list(data["scm_compute_bins"]), list(data["scm_cache_bins"])
    mask: Mask = []
    for k in range(max(len(compute), len(cache))):
        mask += [1] * sum(compute[k : k + 1]) + [0] * sum(cache[k : k + 1])
    return mask


def sd_cpp(data: Any, steps: int) -> Mask:
    """Reads the flags of stable-diffusion.cpp."""
    return list(data["scm-mask"])


def teacache(data: Any, steps: int) -> Mask:
    """Reads a TeaCache whose polynomial is constant: others decide by what they see in a run."""
    coefficients = data.get("coefficients", data.get("tea_table"))
    if any(coefficients[:-1]):
        raise ScheduleError(
            "TeaCache's polynomial decides during the run: these settings hold no plan; "
            "adaptcache.adopt.codes makes a schedule of them"
        )
    threshold = data.get("teacache_thresh", 0.4)
    interval = math.ceil(threshold / coefficients[-1]) if coefficients[-1] > 0 else steps
    last = "teacache_thresh" in data  # TensorRT-LLM always computes the last step, the node does not
    return [int(i % interval == 0 or (last and i == steps - 1)) for i in range(steps)]


def smoothcache(data: Any, steps: int) -> Mask:
    """Reads SmoothCache's lists by component: a step is computed where any component is."""
    return [max(values) for values in zip(*data.values(), strict=True)]


def budcache(data: Any, steps: int) -> Mask:
    """Reads BudCache's list of the steps that are *not* computed."""
    skipped = data["cache_step"] if isinstance(data, Mapping) else data
    if any(not 0 <= i < steps for i in skipped):
        raise ScheduleError(f"a skipped step is not in [0, {steps - 1}]: is it for other steps?")
    return [int(i not in set(skipped)) for i in range(steps)]


def plain(data: Any, steps: int) -> Mask:
    """Reads a list of 1 for each computed step and 0 for each other."""
    return list(data)


KINDS: dict[str, Callable[[Any, int], Mask]] = {
    "diffusers": diffusers,
    "vllm-omni": vllm_omni,
    "lightx2v": lightx2v,
    "comfyui-magcache": mag_table,
    "cache-dit": cache_dit,
    "sglang": sglang,
    "sd.cpp": sd_cpp,
    "teacache": teacache,
    "smoothcache": smoothcache,
    "budcache": budcache,
    "mask": plain,
}
KEYS = {  # a key that only this kind has, most telling first
    "steps_computation_mask": "cache-dit", "scm_compute_bins": "sglang", "scm-mask": "sd.cpp",
    "magcache_ratios": "lightx2v", "mag_threshold": "vllm-omni", "mag_ratios": "diffusers",
    "mag_table": "comfyui-magcache", "tea_table": "teacache", "coefficients": "teacache",
    "cache_step": "budcache",
}  # fmt: skip


def mask_of(data: Any, steps: int, kind: str | None = None) -> tuple[str, Mask]:
    """Returns the kind of some settings and the mask they give on a run of `steps` steps."""
    if isinstance(data, Mapping) and isinstance(data.get("cache_config"), Mapping):
        data = data["cache_config"]
    if kind is None:
        kind = _guessed(data)
    if kind not in KINDS:
        raise LookupError(f"no kind {kind!r}; there are {', '.join(KINDS)}")
    try:
        mask = KINDS[kind](data, steps)
    except (KeyError, TypeError, AttributeError, IndexError, ZeroDivisionError) as error:
        raise ScheduleError(f"these are no {kind} settings: {type(error).__name__} {error}") from error
    if not mask or any(step not in (0, 1) for step in mask):
        raise ScheduleError(f"the mask of {kind} settings is a list of 0 and 1, got {mask!r:.60}")
    return kind, mask


def _guessed(data: Any) -> str:
    if isinstance(data, Mapping):
        for key, kind in KEYS.items():
            if key in data:
                return kind
        if data and all(isinstance(values, list) and set(values) <= {0, 1} for values in data.values()):
            return "smoothcache"
        raise ScheduleError(f"these settings are of no known kind: {', '.join(map(str, data))[:80]}")
    if isinstance(data, Sequence) and all(isinstance(value, int) for value in data):
        mask = set(data) <= {0, 1} and len(data) > len(set(data))
        return "mask" if mask else "budcache"
    raise ScheduleError("a list of steps was expected; say what it is with kind=")
