"""SmoothCache: one threshold for all types of layers, by what it leaves to compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..evaluation.validate import validated
from ..forecasts.extrapolate import Extrapolate
from ..limits import check_name
from ..policies.local_error import LocalError
from ..profiling.cache import Store
from ..profiling.layers import layer_errors
from ..profiling.measure import Progress, measure, silent
from ..runs import Call, Prompt
from ..schedule.methods import find_method, fit_rules
from ..schedule.rule import Rule
from ..schedule.schedule import Schedule
from .calibrate import calls_for
from .fit import assembled

NEVER = 1e9  # no error is as large


def within_budget(errors: Mapping[str, np.ndarray], budget: float, first: bool = False) -> tuple[Rule, ...]:
    """Returns a rule for each type of layer, with the threshold that comes nearest to a budget.

    Arguments:
        errors: By site, the error of reuse with shape (N, L): of step i at step i + 1 + k. Not finite where
            there is no such step.
        budget: The fraction of the layers that is computed, the mean over types.
        first: Whether the first error above the threshold ends a skip; SmoothCache takes the last one below.
    """
    if not 0 < budget <= 1:
        raise ValueError(f"budget must be in (0, 1], got {budget:g}: the fraction of the layers computed")
    rows = {site: np.where(np.isfinite(table), table, NEVER) for site, table in errors.items()}
    values = np.unique(np.concatenate([table[table < NEVER] for table in rows.values()]))
    thresholds = [0.0, *((values[:-1] + values[1:]) / 2), values[-1] * 1.001]
    steps = len(next(iter(rows.values())))
    grid = tuple(1 - i / steps for i in range(steps))

    def policies(threshold: float) -> dict[str, LocalError]:
        return {
            site: LocalError(errors=tuple(map(tuple, table.tolist())), threshold=threshold, first=first)
            for site, table in rows.items()
        }

    def off(threshold: float) -> float:
        made = [len(policy.steps(grid)) for policy in policies(threshold).values()]
        return abs(float(np.mean(made)) / steps - budget)

    low, high = 0, len(thresholds) - 1  # higher thresholds compute less, but for a few steps
    near = [thresholds[round(i)] for i in np.linspace(low, high, min(len(thresholds), 65))]
    best = min(near, key=off)
    chosen = policies(float(best)).items()
    return tuple(Rule(site=site, policy=policy, forecast=Extrapolate(order=0)) for site, policy in chosen)


# Fits a published method to a pipeline, as its paper does it where it says how.


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
    chosen = find_method(method)
    if name:
        check_name(name)
    how = Call(steps, dict(call or {}), seed)
    profile = measure(pipe, how, prompts, batch_size=batch_size, store=store, progress=progress).profile
    share = calls_for(profile.steps, budget, speed) / profile.steps
    if chosen.policy == "local-error" and chosen.site != "step":
        rules = by_layers(pipe, how, prompts, [part.site for part in chosen.parts], share, progress, knobs)
    else:
        rules = fit_rules(method, profile, budget=share, **knobs)
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
