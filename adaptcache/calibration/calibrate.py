"""From prompts to a schedule in one call: profile, plan, match, validate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..distributed import ALONE, Ranks
from ..evaluation.validate import validated
from ..limits import check_name
from ..profiling.cache import Store
from ..profiling.measure import Progress, measure, silent
from ..runs import Call, Prompt
from ..schedule.schedule import Schedule
from .fit import fitted
from .match import Fit
from .targets import checked_claim, checked_gears

__all__ = ["calibrate", "calls_for"]


def calls_for(steps: int, budget: float | None = None, speed: float | None = None) -> int:
    """Returns how many of the steps are computed for a budget or a speed; exactly one must be given."""
    if (budget is None) == (speed is None):
        raise ValueError("give either a budget (fraction of the calls, say 0.36) or a speed (say 2.8)")
    if budget is None:
        assert speed is not None
        if not 1 <= speed <= steps:
            raise ValueError(f"speed must be in [1, {steps}] for {steps} steps, got {speed:g}")
        budget = 1 / speed
    if not 0 < budget <= 1:
        raise ValueError(
            f"budget must be in (0, 1], got {budget:g}: it is the fraction of the calls that are made"
        )
    return max(1, round(budget * steps))


def calibrate(
    pipe: Any,
    prompts: Sequence[Prompt],
    *,
    steps: int = 28,
    speed: float | None = None,
    budget: float | None = None,
    call: Mapping[str, Any] | None = None,
    held_out: Sequence[Prompt] = (),
    seed: int = 0,
    batch_size: int = 1,
    teacher_steps: int | None = None,
    gears: Sequence[float] = (),
    min_psnr: float | None = None,
    at_most: float = 0.05,
    confidence: float = 0.95,
    certify: bool = False,
    fit: Fit = Fit(),  # noqa: B008 - frozen
    name: str | None = None,
    store: Store | None = None,
    ranks: Ranks = ALONE,
    progress: Progress = silent,
) -> Schedule:
    """Fits a schedule to a pipeline.

    Arguments:
        pipe: A diffusers pipeline; it is not changed.
        prompts: Calibration prompts; 8 to 16 are enough.
        steps: `num_inference_steps` of the runs to be made faster.
        speed: All calls over calls made, 1 or more.
        budget: Fraction of the calls that are made, in (0, 1]; instead of `speed`.
        call: Further arguments of the pipeline: height, width, guidance_scale, ...
        held_out: Prompts to measure the quality on; none leaves the schedule without evidence.
        seed: The noise of prompt number k is drawn with seed + k.
        batch_size: How many prompts a run has: as many as fit are fastest.
        teacher_steps: Steps of the reference, a multiple of `steps`: above it the schedule corrects the
            sampler's own error as well.
        gears: Budgets of several plans, among which each run chooses by what it sees; instead of `speed`.
        min_psnr: Decibels against the full run that a prompt should reach, for gears and certificates.
        at_most: The share of prompts that may stay below it.
        confidence: How sure a certificate has to be.
        certify: Test this on the held-out prompts. A schedule that does not pass computes everything, and
            says why.
        fit: What the forecast may use.
        name: What the schedule is called.
        store: Where profiles are kept, so that another target costs seconds; None keeps none.
        ranks: The processes that share the work, from `adaptcache.ranks.joined()`.
        progress: Told the stage, what is done and of how much.

    Returns:
        The schedule, the same on all ranks; `save` it, or `attach` it.

    Example:
        >>> schedule = adaptcache.calibrate(pipe, prompts, steps=28, speed=2.8, call={"height": 512})
        >>> schedule.save("mine.json")
    """
    finer, rest = divmod(teacher_steps or steps, steps)
    if rest or finer < 1:
        raise ValueError(f"teacher steps must be a multiple of the {steps} steps, got {teacher_steps}")
    # A bad target should not cost a profile.
    claim = checked_claim(min_psnr, at_most, confidence, certify, bool(gears), len(held_out))
    geared = checked_gears(steps, gears, budget, speed, finer) if gears else []
    if not gears:
        calls_for(steps, budget, speed)
    if geared and ranks.size > 1:
        raise ValueError(
            f"gears are calibrated in one process, not in {ranks.size}: start without a launcher"
        )
    if name:
        check_name(name)
    how = Call(steps, dict(call or {}), seed)
    measurement = measure(
        pipe, how, prompts,
        batch_size=batch_size, finer=finer, store=store, ranks=ranks, progress=progress,
    )  # fmt: skip
    if geared and claim:
        from .gears import calibrated_gears

        schedule = calibrated_gears(
            pipe, how, prompts, held_out, measurement, geared, claim, certify=certify, fit=fit,
            batch_size=batch_size, store=store, progress=progress,
        )  # fmt: skip
        return schedule.model_copy(update={"name": name}) if name else schedule
    calls = calls_for(measurement.profile.steps, budget, speed)
    schedule = fitted(
        pipe, how, prompts, measurement, calls,
        fit=fit, batch_size=batch_size, ranks=ranks, progress=progress,
    )  # fmt: skip
    if name:
        schedule = schedule.model_copy(update={"name": name})
    if held_out:
        schedule = validated(
            pipe, how, held_out, schedule, batch_size=batch_size, finer=finer, first=len(prompts),
            claim=claim, store=store, ranks=ranks, progress=progress,
        )  # fmt: skip
    return schedule
