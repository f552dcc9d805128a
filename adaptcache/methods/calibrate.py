"""Fits a published method to a pipeline, as its paper does it where it says how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..calibrate import calls_for
from ..call import Call, Prompt
from ..files.limits import checked_name
from ..matching.planned import assembled
from ..profiling.layers import layer_errors
from ..profiling.measure import Progress, measure, silent
from ..profiling.store import Store
from ..schedule import Rule, Schedule
from ..validate import validated
from .local_errors import within_budget
from .rules import fitted_rules
from .table import method_named

__all__ = ["calibrate_method"]


def calibrate_method(
    pipe: Any,
    prompts: Sequence[Prompt],
    method: str,
    *,
    steps: int = 28,
    speed: float | None = None,
    budget: float | None = None,
    call: Mapping[str, Any] | None = None,
    held_out: Sequence[Prompt] = (),
    seed: int = 0,
    batch_size: int = 1,
    name: str | None = None,
    store: Store | None = None,
    progress: Progress = silent,
    **knobs: Any,
) -> Schedule:
    """Fits a published method to a pipeline.

    Methods with a threshold get the one that spends the budget on the calibration prompts, those with an
    interval get the interval. Methods for types of layers with errors of their own (SmoothCache) get these
    errors from one more full run.

    Arguments:
        pipe: A diffusers pipeline; it is not changed.
        prompts: Calibration prompts; the papers take one to a hundred.
        method: A name that `adaptcache methods` lists.
        steps: `num_inference_steps` of the runs to be made faster.
        speed: All calls over calls made, 1 or more; of layers: all of a type over those computed.
        budget: Fraction of the calls that are made, in (0, 1]; instead of `speed`.
        call: Further arguments of the pipeline: height, width, guidance_scale, ...
        held_out: Prompts to measure the quality on; none leaves the schedule without evidence.
        seed: The noise of prompt number k is drawn with seed + k.
        batch_size: How many prompts a run has.
        name: What the schedule is called.
        store: Where profiles are kept; None keeps none.
        progress: Told the stage, what is done and of how much.
        knobs: Fields of the method's policy and forecast that are not fitted.

    Example:
        >>> schedule = calibrate_method(pipe, prompts, "magcache", steps=28, budget=0.5)
    """
    calls_for(steps, budget, speed)  # a bad target should not cost a profile
    chosen = method_named(method)
    if name:
        checked_name(name)
    how = Call(steps, dict(call or {}), seed)
    profile = measure(pipe, how, prompts, batch_size=batch_size, store=store, progress=progress).profile
    share = calls_for(profile.steps, budget, speed) / profile.steps
    if chosen.policy == "local-error" and chosen.site != "step":
        rules = by_layers(pipe, how, prompts, [part.site for part in chosen.parts], share, progress, knobs)
    else:
        rules = fitted_rules(method, profile, budget=share, **knobs)
    schedule = assembled(
        pipe, how, profile, rules, {"prompts": len(prompts), "method": method}, name or method
    )
    if held_out:
        schedule = validated(
            pipe, how, held_out, schedule, batch_size=batch_size, first=len(prompts), store=store,
            progress=progress,
        )  # fmt: skip
    return schedule


def by_layers(
    pipe: Any,
    call: Call,
    prompts: Sequence[Prompt],
    sites: Sequence[str],
    budget: float,
    progress: Progress,
    knobs: Mapping[str, Any],
) -> tuple[Rule, ...]:
    """Returns a rule for each type of layer there is, from errors that are measured in one full run."""
    few = prompts[:8]  # the errors are means over layers too: they hardly differ from one prompt to the next
    errors = layer_errors(
        pipe, call, few, sites, longest=knobs.get("longest", 3),
        progress=lambda done: progress("errors of layers", done, len(few)),
    )  # fmt: skip
    return within_budget(errors, budget, first=knobs.get("first", False))
