"""What is kept of a full run, and the watching visitor that keeps it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..distributed import ALONE, Ranks
from ..engines.diffusers.finer import refined
from ..engines.diffusers.gate import Gate
from ..hooks import Update
from ..profile import Profile
from ..runs import Call, Prompt
from ..step import Step
from .statistics import check_finite, statistics

if TYPE_CHECKING:
    from .cache import Parts


@dataclass
class Trajectory:
    """One full run of a batch of B prompts; lists have one entry a track (video, audio, ...).

    Arguments:
        times: The grid, with shape (N,).
        u: The guided outputs, N tensors with shape (B, *).
        x: The latents before each step, N tensors with shape (B, *).
        y: Where the scheduler landed, N tensors with shape (B, *).
    """

    times: tuple[float, ...] = ()
    u: list[list[Tensor]] = field(default_factory=list)
    x: list[list[Tensor]] = field(default_factory=list)
    y: list[list[Tensor]] = field(default_factory=list)

    def head(self, samples: int, of: int) -> Trajectory:
        """Returns the trajectory of the first samples of a batch."""

        def cut(tracks: list[list[Tensor]]) -> list[list[Tensor]]:
            return [[value[: len(value) * samples // of] for value in track] for track in tracks]

        return Trajectory(self.times, cut(self.u), cut(self.x), cut(self.y))


class Recorder:
    """Computes every step and keeps every `stride`-th, on the CPU.

    Arguments:
        stride: Of the steps that are kept.
        first: The number of the batch's first prompt, for errors.
        samples: How many prompts the batch has.
    """

    def __init__(self, stride: int = 1, first: int = 0, samples: int = 1) -> None:
        self.stride, self.first, self.samples = stride, first, samples
        self.run = Trajectory()

    def begin(self, times: tuple[float, ...]) -> None:
        self.run = Trajectory(times[:: self.stride])

    def computes(self, step: Step) -> bool:
        return True

    def update(self, update: Update) -> Tensor:
        if update.step.index % self.stride == 0:
            self._keep(self.run.u, update, update.move.u, "the denoiser's output")
            self._keep(self.run.x, update, update.move.x, "the latents before the step")
        return update.move.u

    def landed(self, update: Update, y: Tensor) -> None:
        if (update.step.index + 1) % self.stride == 0:
            self._keep(self.run.y, update, y, "the latents after the step")

    def end(self) -> None:
        """Keeps the trajectory: it is what was asked for."""

    def _keep(self, tracks: list[list[Tensor]], update: Update, value: Tensor, what: str) -> None:
        while len(tracks) <= update.track:
            tracks.append([])
        kept = value.detach().to("cpu", copy=True).contiguous()
        check_finite(kept, what, update.step.index, self.first, self.samples)  # now, not hours later
        tracks[update.track].append(kept)


# Full runs on calibration prompts, and the profile of all of them.

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
