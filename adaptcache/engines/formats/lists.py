"""Lists of steps as other codes keep them, which are only read: masks, skipped steps, command lines."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ...errors import ScheduleError
from ...schedule.rule import Site
from .mask import Format, Settings, check_steps, reuse_by_mask

COMPONENTS: dict[str, Site] = {  # of SmoothCache, by what they are in diffusers and in DiT's code
    "attn": "attention", "attn1": "attention", "attn2": "cross-attention", "cross_attn": "cross-attention",
    "ff": "mlp", "mlp": "mlp",
}  # fmt: skip


def read_components(data: Any, steps: int | None) -> Settings:
    """Reads SmoothCache's lists by component.

    Each type of layers follows its own; where a name is of none, a step is computed where any component is.
    """
    lengths = {name: len(values) for name, values in data.items()}
    if len(set(lengths.values())) > 1:
        raise ScheduleError(f"the lists of components have one length, got {lengths!r:.60}")
    sites = [COMPONENTS.get(name) for name in data]
    if None in sites or len(set(sites)) < len(sites):
        return reuse_by_mask([max(values) for values in zip(*data.values(), strict=True)])
    first, *more = [reuse_by_mask(values, site) for values, site in zip(data.values(), sites, strict=True) if site]
    return replace(first, more=tuple(settings.rule for settings in more))


def read_skipped(data: Any, steps: int | None) -> Settings:
    """Reads BudCache's list of the steps that are *not* computed."""
    skipped = data
    if isinstance(data, Mapping):
        skipped, steps = data["cache_step"], data.get("num_inference_steps") or data.get("steps") or steps
    if not steps:
        raise ScheduleError("'cache_step' without the number of steps: add 'num_inference_steps'")
    steps = check_steps(steps)
    if wrong := [step for step in skipped if not isinstance(step, int) or not 0 <= step < steps]:
        raise ScheduleError(f"a skipped step is not in [0, {steps - 1}], got {wrong[0]!r:.40}: is it for other steps?")
    return reuse_by_mask([int(step not in skipped) for step in range(steps)])


SD_CPP = Format(
    "sd.cpp", "of 2026-08 (97d2990)", lambda data, steps: reuse_by_mask(data["scm-mask"]), keys=("scm-mask",),
    void="it parses --scm-mask and does not follow it: a threshold decides, between 15 and 95 % of the steps",
)  # fmt: skip
SMOOTHCACHE = Format("smoothcache", "arXiv 2411.10510", read_components)
BUDCACHE = Format("budcache", "", read_skipped, keys=("cache_step",))
MASK = Format("mask", "", lambda data, steps: reuse_by_mask(data))
