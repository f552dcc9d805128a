"""What calibration begins with: full runs on the calibration prompts, or what was kept of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..distributed import ALONE, Ranks
from ..engines.diffusers.compatibility import other_cache
from ..limits import KERNEL_STEPS
from ..profile import Profile
from ..runs import Call, Prompt
from .cache import Store, content_key
from .reference import Trajectory, record
from .sensitivity import with_influence

__all__ = ["Measurement", "Progress", "in_turn", "measure", "silent"]

INFLUENCED = 2  # prompts of the output-error curve: it takes half a run a step

Progress = Callable[[str, int, int], None]  # stage, done, of


def silent(stage: str, done: int, of: int) -> None:
    """Reports no progress."""


def in_turn(progress: Progress, stage: str, number: int, jobs: int, size: int) -> Callable[[int], None]:
    """Returns what is told how much of a job is done, and tells how much of all jobs of the stage is."""
    return lambda done: progress(stage, number * size + done, jobs * size)


@dataclass(frozen=True)
class Measurement:
    """What full runs on the calibration prompts gave.

    Arguments:
        profile: Statistics, influence included.
        runs: The reference trajectories, one a batch; of several ranks, each has those of its own batches.
    """

    profile: Profile
    runs: list[Trajectory]


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
