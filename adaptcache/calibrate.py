"""From prompts to a schedule in one call: profile, plan, match, validate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import diffusers
import numpy as np
import torch

from . import __version__
from .adaptive.learn import watched
from .adaptive.targets import checked_claim, checked_gears, claimed
from .call import Call, Prompt
from .certify import Claim
from .files.limits import KERNEL_STEPS, checked_name
from .fitting.kernel import pair_errors
from .fitting.path import best_plan
from .generate import generate
from .matching import Fit, match
from .metrics import psnr, summary
from .policies.plan import Plan
from .profiling.influence import with_influence
from .profiling.profile import Profile
from .profiling.record import Trajectory, batches, record
from .profiling.store import Store, content_key, described
from .provenance.compatibility import other_cache
from .provenance.fingerprint import fingerprint, provenance
from .ranks import ALONE, Ranks
from .schedule import Evidence, Grid, Kernel, Rule, Schedule

__all__ = ["Measurement", "calibrate", "calls_for", "measure"]

INFLUENCED = 2  # prompts of the output-error curve: it takes half a run a step
TRUST = (0.0, 0.25, 0.5, 0.75, 1.0)  # exponents of the measured influence

Progress = Callable[[str, int, int], None]  # stage, done, of


def silent(stage: str, done: int, of: int) -> None:
    """Reports no progress."""


@dataclass(frozen=True)
class Measurement:
    """What full runs on the calibration prompts gave.

    Arguments:
        profile: Statistics, influence included.
        runs: The reference trajectories, one a batch; of several ranks, each has those of its own batches.
    """

    profile: Profile
    runs: list[Trajectory]


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


def measure(
    pipe: Any,
    call: Call,
    prompts: Sequence[Prompt],
    *,
    batch_size: int = 1,
    finer: int = 1,
    store: Store | None = None,
    ranks: Ranks = ALONE,
    progress: Progress = silent,
) -> Measurement:
    """Profiles the pipeline on calibration prompts, or takes the profile from the store.

    Arguments:
        pipe: A diffusers pipeline; it is not changed.
        call: How to call it.
        prompts: P calibration prompts.
        batch_size: How many prompts a run has.
        finer: Steps of the reference in each step of the grid.
        store: Where profiles are kept; None keeps none. Ranks may share it, or have one each.
        ranks: Who shares the work.
        progress: Told the stage, what is done and of how much.
    """
    if call.steps < 2:
        raise ValueError(f"nothing can be skipped in {call.steps} steps; calibrate with 2 or more")
    if call.steps > KERNEL_STEPS:
        raise ValueError(f"a schedule holds at most {KERNEL_STEPS} steps, got {call.steps}: take fewer")
    if name := other_cache(pipe):
        raise ValueError(
            f"{name} is on in this pipeline: its full runs would not be full; turn it off "
            "(pipe.transformer.disable_cache()), then calibrate"
        )
    if not prompts:
        raise ValueError("no calibration prompts; one is the least, 8 or more are better")
    key = content_key(pipe, call, prompts, batch_size, finer) if store else ""
    kept = store.parts(key, ranks.rank) if store else None
    if store and (found := known(store, key, ranks.own(-(-len(prompts) // batch_size)), ranks)):
        return found
    count = len(prompts)
    profile, runs = record(
        pipe, call, prompts, batch_size=batch_size, finer=finer, kept=kept, ranks=ranks,
        progress=lambda done: progress("full runs", done, count),
    )  # fmt: skip
    if finer == 1:  # a finer teacher's outputs cannot be replayed step by step
        few = min(INFLUENCED, batch_size, count)
        profile = with_influence(
            pipe, call, prompts[:few], profile,
            runs[0].head(few, of=min(batch_size, count)) if ranks.rank == 0 else None,
            kept=kept, ranks=ranks,
            progress=lambda done: progress("influence of each step", done, profile.steps - 1),
        )  # fmt: skip
    if store and ranks.rank == 0:
        store.save_profile(key, profile)
    return Measurement(profile, runs)


def known(store: Store, key: str, numbers: range, ranks: Ranks) -> Measurement | None:
    """Returns what the store has, if rank 0 has the profile and every rank the runs of its batches."""
    profile = ranks.first(store.load_profile(key) if ranks.rank == 0 else None)
    runs = store.parts(key).runs(numbers) if profile else None
    whole = all(ranks.exchange(runs is not None))
    return Measurement(profile, runs) if profile and runs is not None and whole else None


def fitted(
    pipe: Any,
    call: Call,
    prompts: Sequence[Prompt],
    measurement: Measurement,
    calls: int,
    *,
    fit: Fit = Fit(),  # noqa: B008 - frozen
    batch_size: int = 1,
    ranks: Ranks = ALONE,
    progress: Progress = silent,
) -> Schedule:
    """Plans `calls` computed steps and matches the weights of the others.

    The influence of a step was measured without matching, which undoes much of an early error. So it
    is trusted in several degrees, and the plan whose matched runs end closest to the reference is taken.
    """
    profile = measurement.profile
    errors, times = pair_errors(profile.kernel), tuple(map(float, profile.times))
    plans = sorted({tuple(best_plan(errors, profile.sensitivity**trust, calls)) for trust in TRUST})
    matchings = []
    for number, plan in enumerate(plans):

        def watch(done: int, before: int = number * len(times)) -> None:
            progress(f"matching {calls} calls", before + done, len(plans) * len(times))

        matchings.append(
            match(
                pipe, call, prompts, plan, profile, measurement.runs,
                fit=fit, batch_size=batch_size, ranks=ranks, progress=watch,
            )
        )  # fmt: skip
        watch(len(times))  # the last steps may have been computed ones
    best = min(range(len(plans)), key=lambda number: matchings[number].error)
    policy = watched(Plan.of(plans[best], times), plans[best], profile)
    rule = Rule(policy=policy, forecast=matchings[best].forecast)
    about = {"prompts": len(prompts), "history": fit.history, "ridge": fit.ridge}
    return assembled(pipe, call, profile, (rule,), about)


def assembled(
    pipe: Any,
    call: Call,
    profile: Profile,
    rules: tuple[Rule, ...],
    about: Mapping[str, Any] | None = None,
    name: str = "",
) -> Schedule:
    """Returns fitted rules as a schedule: with the kernel, and with what they were fitted on.

    Arguments:
        about: What its provenance says besides.
        name: What it is called. A plan has a name by itself.
    """
    times, policy = tuple(map(float, profile.times)), rules[0].policy
    if not name:
        assert isinstance(policy, Plan)
        speed = len(times) / len(policy.steps(times))
        name = f"{type(pipe).__name__}-{len(times)}-{speed:.3g}x"
    kernel = Kernel(
        times=times,
        gram=tuple(map(tuple, profile.kernel.tolist())),
        sensitivity=tuple(profile.sensitivity.tolist()),
    )
    made = {
        "adaptcache": __version__, "diffusers": diffusers.__version__, "torch": torch.__version__,
        **provenance(pipe), "steps": call.steps, "seed": call.seed,
        "call": {k: described(v) for k, v in call.arguments.items()}, **(about or {}),
    }  # fmt: skip
    return Schedule(
        name=name,
        denoiser=fingerprint(pipe),
        grid=Grid(scheduler=type(pipe.scheduler).__name__, times=times),
        rules=rules,
        kernel=kernel,
        made=made,
    )


def check_images(images: Sequence[np.ndarray], first: int, run: str) -> None:
    """Raises where an image is not finite: stored as numbers it would be black, and count as a match."""
    for number, image in enumerate(images, start=first):
        if not np.isfinite(image).all():
            raise ValueError(
                f"the image of held-out prompt {number} from {run} has values that are not finite: "
                "load the pipeline in bfloat16 or float32, or leave the prompt out"
            )


def validated(
    pipe: Any,
    call: Call,
    held_out: Sequence[Prompt],
    schedule: Schedule,
    *,
    batch_size: int = 1,
    finer: int = 1,
    first: int = 0,
    claim: Claim | None = None,
    store: Store | None = None,
    ranks: Ranks = ALONE,
    progress: Progress = silent,
) -> Schedule:
    """Returns the schedule with the evidence of held-out prompts.

    Arguments:
        first: The number of the first held-out prompt: its noise is not that of a calibration prompt.
        claim: What they should show; where they do not, the schedule computes everything.
        ranks: Who shares the batches.
    """
    count, jobs = len(held_out), list(batches(held_out, batch_size))
    key = content_key(pipe, call, held_out, batch_size, finer, first, "images") if store else ""
    truth: dict[int, list[np.ndarray]] = {}  # of this rank's batches

    def full(number: int) -> None:
        start, batch = jobs[number]
        images = store.load_images(key, number) if store else None
        if images is None:
            images = generate(
                pipe, call, batch, batch_size=batch_size, finer=finer, offset=first + start
            ).images
            check_images(images, start, "the full run")
            if store:
                store.save_images(key, images, number)
        truth[number] = images

    def planned(number: int) -> tuple[list[float], int]:
        start, batch = jobs[number]
        made = generate(pipe, call, batch, schedule, batch_size=batch_size, offset=first + start)
        check_images(made.images, start, "the run by the schedule")
        return [psnr(a, b) for a, b in zip(made.images, truth[number], strict=True)], made.calls

    def told(stage: str) -> Callable[[int], None]:
        return lambda done: progress(stage, min(done * batch_size, count), count)

    ranks.each(len(jobs), full, told("held-out, full"))
    results = ranks.each(len(jobs), planned, told("held-out, by schedule"))
    calls, steps = sum(calls for _, calls in results) // len(jobs), len(schedule.grid.times)
    values = [value for found, _ in results for value in found]
    evidence = Evidence(
        prompts=f"{count} held-out",
        n=count,
        calls=(calls, steps),
        psnr=summary(values),
        speed=steps / calls,
    )
    return claimed(schedule, evidence, values, claim)


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
        checked_name(name)
    how = Call(steps, dict(call or {}), seed)
    measurement = measure(
        pipe, how, prompts,
        batch_size=batch_size, finer=finer, store=store, ranks=ranks, progress=progress,
    )  # fmt: skip
    if geared and claim:
        from .adaptive.calibrate import calibrated_gears

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
