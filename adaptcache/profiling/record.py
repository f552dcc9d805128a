"""Full runs on calibration prompts, and the profile of all of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..call import Call, Prompt
from ..gate import Gate
from ..ranks import ALONE, Ranks
from .profile import Profile
from .statistics import statistics
from .teacher import refined
from .trajectory import Recorder, Trajectory

if TYPE_CHECKING:
    from .parts import Parts

__all__ = ["Progress", "batches", "record", "twin"]

Progress = Callable[[int], None]


def batches(prompts: Sequence[Prompt], size: int) -> Iterator[tuple[int, Sequence[Prompt]]]:
    """Yields the number of the first prompt of each batch, and the batch."""
    for first in range(0, len(prompts), size):
        yield first, prompts[first : first + size]


def twin(pipe: Any) -> Any:
    """Returns a pipeline that shares all weights but has its own scheduler, hooks and progress bar."""
    other = copy.copy(pipe)
    other.scheduler = copy.deepcopy(pipe.scheduler)
    for name, part in pipe.components.items():
        if isinstance(part, torch.nn.Module):
            shared = copy.copy(part)  # the same parameters; its own place for a gate
            if compiled := vars(part).get("_compiled_call_impl"):
                vars(shared)["_compiled_call_impl"] = compiled
            setattr(other, name, shared)
    other.set_progress_bar_config(disable=True)
    return other


def record(
    pipe: Any,
    call: Call,
    prompts: Sequence[Prompt],
    *,
    batch_size: int = 1,
    finer: int = 1,
    kept: Parts | None = None,
    ranks: Ranks = ALONE,
    progress: Progress = lambda done: None,
) -> tuple[Profile, list[Trajectory]]:
    """Runs the pipeline in full and measures how its outputs change from step to step.

    Arguments:
        pipe: A diffusers pipeline; it is not changed.
        call: How to call it.
        prompts: P calibration prompts.
        batch_size: How many prompts a run has.
        finer: Steps of the reference in each step of the grid: above 1 it is a finer teacher.
        kept: Where batches are kept as they finish, and taken from when all is done again.
        ranks: Who shares the batches.
        progress: Told the number of prompts done after each run.

    Returns:
        The profile of all prompts (without influence), and the trajectories of this rank's batches.
    """
    own = twin(pipe)
    own.scheduler = refined(own.scheduler, finer)
    runs: list[Trajectory] = []
    jobs = list(batches(prompts, batch_size))

    def work(number: int) -> tuple[tuple[float, ...], list[dict[str, np.ndarray]]]:
        first, batch = jobs[number]
        found = kept.load(number) if kept else None
        if found is None:
            run = full_run(own, call, batch, first, finer)
            found = run, statistics(run, len(batch), first)
            if kept:
                kept.save(number, *found)
        runs.append(found[0])
        return found[0].times, found[1]

    done = ranks.each(len(jobs), work, lambda done: progress(min(done * batch_size, len(prompts))))
    for (first, _), (grid, _) in zip(jobs, done, strict=True):
        if grid != done[0][0]:
            raise ValueError(
                f"prompt {first} runs on another grid ({len(grid)} steps) than prompt 0 "
                f"({len(done[0][0])}): calibrate with one size and one number of steps"
            )
    rows = [row for _, known in done for row in known]
    arrays: dict[str, Any] = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    times = np.array(done[0][0])
    return Profile(times=times, influence=np.zeros((0, len(times))), **arrays), runs


def full_run(own: Any, call: Call, batch: Sequence[Prompt], first: int, finer: int) -> Trajectory:
    """Runs one batch in full, on a pipeline that may be gated, and checks that it went to the end."""
    recorder = Recorder(finer, first, len(batch))
    with closing(Gate(own, recorder).open()):
        call(own, batch, first)
    run = recorder.run
    if (taken := len(run.y[0])) < len(run.times):
        raise ValueError(
            f"the run stopped after {taken} of {len(run.times)} steps (denoising_end?): "
            "calibrate on whole runs"
        )
    return run
