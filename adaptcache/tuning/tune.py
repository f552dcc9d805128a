"""The one-call path of tuning: measure, search, choose, fit again, report."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..evaluation.generate import synchronize
from ..limits import check_name
from ..profiling.cache import Store, content_key
from ..profiling.measure import Progress, measure, silent
from ..runs import Call, Prompt
from .bench import Bench
from .candidate import Candidate
from .conclude import Tuned, concluded
from .latency import most_calls, seconds_of
from .proposals import Proposer
from .search import Search
from .sets import split
from .storage import open_storage, open_study, turnstile
from .target import Target

__all__ = ["begin", "tune"]

LAYOUT = 2  # raise it when trials of before mean something else


def begin(
    pipe: Any, prompts: Sequence[Prompt], target: Target, *, steps: int = 28,
    call: Mapping[str, Any] | None = None, held_out: Sequence[Prompt] = (), trials: int | None = None,
    timeout: float | None = None, storage: str | Path | None = None, resume: bool = False, seed: int = 0,
    batch_size: int = 1, store: Store | None = None, progress: Progress = silent,
) -> Search:  # fmt: skip
    """Returns a search, ready to run: what is bad about the arguments is said here. See `tune`."""
    target.check(steps, len(held_out))
    trials = target.usual if trials is None else trials
    if trials < 1:
        raise ValueError(f"trials must be 1 or more, got {trials}")
    if timeout is not None and not timeout > 0:
        raise ValueError(f"timeout must be above 0 seconds, got {timeout:g}")
    sets, how = split(prompts, held_out), Call(steps, dict(call or {}), seed)
    if resume and storage is None and store is None:
        raise ValueError("nothing can be resumed from memory: give a storage, or a store")
    place = open_storage(storage, store.folder if store else None)
    known = [list(sets.fit), list(sets.select), list(held_out) if target.min_psnr is not None else []]
    name = "adaptcache-" + content_key(pipe, how, *known, repr(target), batch_size, LAYOUT)
    study = open_study(place, name, resume)
    measurement = measure(pipe, how, list(prompts), batch_size=batch_size, store=store, progress=progress)
    proposer = Proposer(measurement.profile, seed)
    bench = Bench.of(pipe, how, sets, measurement, batch_size, store, progress)
    choices = _choices(study, bench, target, proposer)
    if target.min_psnr is None and trials < (needed := sum(len(proposer.warm(calls)) for calls in choices)):
        raise ValueError(
            f"the first {needed} trials are what calibrate chooses from: give more than {trials}"
        )
    deadline = time.monotonic() + (timeout or math.inf)
    return Search(study, bench, proposer, target, choices, trials, deadline, progress, turnstile(place))


def _choices(study: Any, bench: Bench, target: Target, proposer: Proposer) -> tuple[int, ...]:
    """Returns the numbers of calls that may be tried; what was measured for it is kept in the study."""
    steps = proposer.profile.steps
    if target.max_latency is None:
        return target.choices(steps)
    if "calls" not in study.user_attrs:
        study.set_user_attr(
            "calls", most_calls(target.max_latency, steps, lambda calls: _seconds(bench, proposer, calls))
        )
    return (int(study.user_attrs["calls"]),)


def _seconds(bench: Bench, proposer: Proposer, calls: int) -> float:
    """Returns how long one image takes with so many calls."""
    some = Candidate(plan=proposer.planned(1.0, calls), forecast="open-loop", order=4)
    schedule = bench.schedule(bench.rule(some)[0])
    synchronize()
    return seconds_of(bench.pipe, bench.call, bench.sets.fit[0], schedule)


def tune(
    pipe: Any,
    prompts: Sequence[Prompt],
    *,
    steps: int = 28,
    speed: float | None = None,
    budget: float | None = None,
    max_calls: int | None = None,
    max_latency: float | None = None,
    min_psnr: float | None = None,
    at_most: float = 0.05,
    confidence: float = 0.95,
    call: Mapping[str, Any] | None = None,
    held_out: Sequence[Prompt] = (),
    trials: int | None = None,
    timeout: float | None = None,
    storage: str | Path | None = None,
    resume: bool = False,
    seed: int = 0,
    batch_size: int = 1,
    name: str | None = None,
    store: Store | None = None,
    progress: Progress = silent,
) -> Tuned:
    """Finds the schedule for a target, or the whole front.

    Weights are fitted on the first half of the prompts, schedules are chosen on the second half, and what is
    chosen is fitted again on both. Held-out prompts are only reported on. Several processes may call this
    with the same arguments and one storage, and share the trials.

    Arguments:
        pipe: A diffusers pipeline; it is not changed.
        prompts: Calibration prompts, 2 or more; 16 are good.
        steps: `num_inference_steps` of the runs to be made faster.
        speed: All calls over calls made. Give one target, or none for the whole front.
        budget: Fraction of the calls that are made, in (0, 1].
        max_calls: At most so many denoiser calls.
        max_latency: At most so many seconds for one image, decoding included.
        min_psnr: Decibels that prompts should reach, with as few calls as possible.
        at_most: The share of prompts that may stay below `min_psnr`.
        confidence: How sure that has to be; it is tested on the held-out prompts.
        call: Further arguments of the pipeline: height, width, guidance_scale, ...
        held_out: Prompts to report on.
        trials: How many trials there are in all, those of before included.
        timeout: Seconds after which no trial is begun.
        storage: The URL of a database that optuna knows, or the path of a journal file; None takes a SQLite
            file in the store, or memory if there is no store.
        resume: Go on with the trials that are there.
        seed: The noise of prompt number k is drawn with seed + k; the search draws from it too.
        batch_size: How many prompts a run has.
        name: What the schedule is called.
        store: Where full runs are kept.
        progress: Told the stage, what is done and of how much.

    Raises:
        ValueError: The target or another argument cannot be met; or there are trials and `resume` is False.

    Example:
        >>> tuned = adaptcache.tuning.tune(pipe, prompts, steps=28, speed=2.8, call={"height": 512})
        >>> tuned.schedule.save("mine.json")
    """
    target = Target(speed, budget, max_calls, max_latency, min_psnr, at_most, confidence)
    if name:
        check_name(name)
    search = begin(
        pipe, prompts, target, steps=steps, call=call, held_out=held_out, trials=trials, timeout=timeout,
        storage=storage, resume=resume, seed=seed, batch_size=batch_size, store=store, progress=progress,
    )  # fmt: skip
    search.run()
    return concluded(search, store, name)
