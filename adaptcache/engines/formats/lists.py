"""Lists of steps as other codes keep them, which are only read: masks, skipped steps, command lines."""

from collections.abc import Mapping
from typing import Any

from ...errors import ScheduleError
from .mask import Format, Settings, check_steps, reuse_by_mask


def read_mask(data: Any, steps: int | None) -> Settings:
    """Reads a list of 1 for each computed step and 0 for each other."""
    return reuse_by_mask(data)


def read_flags(data: Any, steps: int | None) -> Settings:
    """Reads the flag `--scm-mask` of stable-diffusion.cpp."""
    return reuse_by_mask(data["scm-mask"])


def read_components(data: Any, steps: int | None) -> Settings:
    """Reads SmoothCache's lists by component: a step is computed where any component is."""
    return reuse_by_mask([max(values) for values in zip(*data.values(), strict=True)])


def read_skipped(data: Any, steps: int | None) -> Settings:
    """Reads BudCache's list of the steps that are *not* computed."""
    skipped = data
    if isinstance(data, Mapping):
        skipped, steps = data["cache_step"], data.get("num_inference_steps") or data.get("steps") or steps
    if not steps:
        raise ScheduleError("'cache_step' without the number of steps: add 'num_inference_steps'")
    if any(not 0 <= step < steps for step in skipped):
        raise ScheduleError(f"a skipped step is not in [0, {steps - 1}]: is it for other steps?")
    return reuse_by_mask([int(step not in skipped) for step in range(check_steps(steps))])


SD_CPP = Format(
    "sd.cpp", "of 2026-08 (97d2990)", read_flags, keys=("scm-mask",),
    void="it parses --scm-mask and does not follow it: a threshold decides, between 15 and 95 % of the steps",
)  # fmt: skip
SMOOTHCACHE = Format("smoothcache", "arXiv 2411.10510", read_components)
BUDCACHE = Format("budcache", "", read_skipped, keys=("cache_step",))
MASK = Format("mask", "", read_mask)
