"""Settings files of other engines, written and read side by side: one file for each kind of cache that they have."""

from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from ...errors import ScheduleError
from ...policies.polynomial import Polynomial
from ...schedule.schedule import Schedule
from . import published, table, teacache
from .cache_dit import CACHE_DIT, SGLANG, XDIT
from .magcache import COMFYUI_MAGCACHE, DIFFUSERS, LIGHTX2V, VLLM_OMNI
from .mask import Exported, Format, ReusePlan, ReusePlanner, computed_steps

__all__ = ["FORMATS", "Exported", "ReusePlan", "apply_export", "computed_steps", "export", "find_format"]

FORMATS: dict[str, Format] = {
    form.name: form
    for form in (
        DIFFUSERS, CACHE_DIT, SGLANG, XDIT, VLLM_OMNI, teacache.TENSORRT_LLM, LIGHTX2V, COMFYUI_MAGCACHE,
        teacache.COMFYUI_TEACACHE, table.FORMAT, published.SD_CPP, published.BUDCACHE, published.SMOOTHCACHE,
        published.MASK, published.L2C, published.HARMONICA, published.ECAD,
    )
}  # fmt: skip


def find_format(name: str) -> Format:
    """Returns the format of an engine; `LookupError` says which there are."""
    if name not in FORMATS:
        raise LookupError(f"no format {name!r}; there are {', '.join(FORMATS)}")
    return FORMATS[name]


def export(
    schedule: Schedule, to: str, *, gear: int = 0, calls: int | None = None, steps: int | None = None
) -> Exported:
    """Returns a schedule in the form of another engine.

    No other engine knows matched weights: they become reuse, and the computed steps are chosen anew for
    reuse from the schedule's kernel. `Exported.lost` says what that and the engine's own limits cost. A
    schedule that decides by TeaCache's polynomial keeps it, in engines that have a TeaCache. A `table` keeps
    everything.

    Arguments:
        to: The engine, one of `FORMATS`.
        calls: How many steps to compute, for more quality than as many calls give by reuse; None
            computes as many as the plan does.
        steps: How many steps the run will have, where not as many as it was fitted on.

    Raises:
        LookupError: There is no such engine.
        ScheduleError: The schedule has no plan, or none that the engine would follow.

    Example:
        >>> exported = export(Schedule.load("flux.json"), "diffusers")
        >>> exported.save("flux.magcache.json")
        >>> print(exported.explained("flux.magcache.json"))
    """
    form, model = find_format(to), schedule.denoiser.class_name
    engine = f"{form.name} {form.version}".strip()
    if form.write is None:
        raise ScheduleError(f"nothing is exported to {engine}: {form.void}")
    if isinstance(schedule.rules[0].policy, Polynomial):
        if form.write_polynomial is None:
            able = ", ".join(other.name for other in FORMATS.values() if other.write_polynomial)
            raise ScheduleError(
                f"{schedule.name} decides by a polynomial, which {to} does not know; "
                f"{able} do, or export a schedule with a plan"
            )
        schedule.check_gear(gear)
        if calls is not None:
            raise ScheduleError(f"{schedule.name} decides how many steps it computes as it runs: leave the calls out")
        exported = teacache.write_with(form, schedule)
    else:
        if schedule.grid.full and form is not table.FORMAT:
            raise ScheduleError(
                f"{schedule.name} has times of its own, which {engine} does not take: export a table, or calibrate on "
                "the grid"
            )
        if model and form.models and model not in form.models:
            raise ScheduleError(
                f"{engine} follows a plan for {', '.join(form.models)} only; {schedule.name} is for {model}"
            )
        exported = form.write(ReusePlanner(schedule, gear, calls, steps))
    of_plan = exported.plan.lost if exported.plan else ()
    return replace(exported, engine=to, version=form.version, lost=(*of_plan, *exported.lost))


def apply_export(pipe: Any, exported: Exported) -> AbstractContextManager[None]:
    """Lets the engine run a diffusers pipeline by an export, until the context is closed.

    Raises:
        LookupError: The engine does not run diffusers pipelines.
    """
    if (apply := FORMATS[exported.engine].apply) is None:
        able = " and ".join(form.name for form in FORMATS.values() if form.apply)
        raise LookupError(f"{exported.engine} does not run here; {able} can be measured")
    return apply(pipe, exported)
