"""Schedules in the form of other engines: one file an engine."""

from __future__ import annotations

from collections.abc import Callable

from ...policies.polynomial import Polynomial
from ...schedule.schedule import Schedule
from .cache_dit import cache_dit
from .coefficients import teacache
from .comfyui_magcache import comfyui_magcache
from .comfyui_teacache import comfyui_teacache
from .diffusers import diffusers
from .lightx2v import lightx2v
from .mask import Exported, Mask, Reuse, computed_steps
from .sd_cpp import sd_cpp
from .sglang import sglang
from .tensorrt_llm import tensorrt_llm
from .vllm_omni import vllm_omni
from .xdit import xdit

__all__ = ["ENGINES", "Exported", "Mask", "Reuse", "computed_steps", "export"]

ENGINES: dict[str, Callable[[Reuse], Exported]] = {
    "diffusers": diffusers,
    "cache-dit": cache_dit,
    "sglang": sglang,
    "xdit": xdit,
    "vllm-omni": vllm_omni,
    "lightx2v": lightx2v,
    "tensorrt-llm": tensorrt_llm,
    "sd.cpp": sd_cpp,
    "comfyui-magcache": comfyui_magcache,
    "comfyui-teacache": comfyui_teacache,
}


def export(
    schedule: Schedule, to: str, *, gear: int = 0, calls: int | None = None, steps: int | None = None
) -> Exported:
    """Returns a schedule in the form of another engine.

    No other engine knows matched weights: they become reuse, and the computed steps are chosen anew for
    reuse from the schedule's kernel. `Exported.lost` says what that and the engine's own limits cost. A
    schedule that decides by TeaCache's polynomial keeps it, in engines that have a TeaCache.

    Arguments:
        schedule: The schedule.
        to: The engine, one of `ENGINES`.
        gear: Which plan of the schedule.
        calls: How many steps to compute, for more quality than as many calls give by reuse; None
            computes as many as the plan does.
        steps: How many steps the run will have, where not as many as it was fitted on.

    Raises:
        LookupError: There is no such engine.
        ScheduleError: The schedule has no plan, or none that the engine can follow.

    Example:
        >>> exported = export(Schedule.load("flux.json"), "diffusers")
        >>> exported.save("flux.magcache.json")
        >>> print(exported.explained("flux.magcache.json"))
    """
    if to not in ENGINES:
        raise LookupError(f"no engine {to!r}; there are {', '.join(ENGINES)}")
    if isinstance(schedule.rules[0].policy, Polynomial):
        return teacache(schedule, to)
    return ENGINES[to](Reuse(schedule, gear, calls, steps))
