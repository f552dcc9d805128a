"""Full runs on calibration prompts: the watching visitor, and what it keeps."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .call import Call, Prompt
from .clock import Step
from .gate import Gate, Update
from .profile import Profile
from .teacher import refined

__all__ = ["Recorder", "Trajectory", "batches", "record", "twin"]

Progress = Callable[[int], None]


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
    """Computes every step and keeps every `stride`-th, on the CPU."""

    def __init__(self, stride: int = 1) -> None:
        self.stride = stride
        self.run = Trajectory()

    def begin(self, times: tuple[float, ...]) -> None:
        self.run = Trajectory(times[:: self.stride])

    def computes(self, step: Step) -> bool:
        return True

    def update(self, update: Update) -> Tensor:
        if update.step.index % self.stride == 0:
            self._keep(self.run.u, update.track, update.move.u)
            self._keep(self.run.x, update.track, update.move.x)
        return update.move.u

    def landed(self, update: Update, y: Tensor) -> None:
        if (update.step.index + 1) % self.stride == 0:
            self._keep(self.run.y, update.track, y)

    def end(self) -> None:
        """Keeps the trajectory: it is what was asked for."""

    @staticmethod
    def _keep(tracks: list[list[Tensor]], track: int, value: Tensor) -> None:
        while len(tracks) <= track:
            tracks.append([])
        tracks[track].append(value.detach().to("cpu", copy=True))


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
    progress: Progress = lambda done: None,
) -> tuple[Profile, list[Trajectory]]:
    """Runs the pipeline in full and measures how its outputs change from step to step.

    Arguments:
        pipe: A diffusers pipeline; it is not changed.
        call: How to call it.
        prompts: P calibration prompts.
        batch_size: How many prompts a run has.
        finer: Steps of the reference in each step of the grid: above 1 it is a finer teacher.
        progress: Told the number of prompts done after each run.

    Returns:
        The profile (without influence), and the trajectories, one a batch.
    """
    own = twin(pipe)
    own.scheduler = refined(own.scheduler, finer)
    runs: list[Trajectory] = []
    rows: list[dict[str, np.ndarray]] = []
    for first, batch in batches(prompts, batch_size):
        recorder = Recorder(finer)
        gate = Gate(own, recorder).open()
        try:
            call(own, batch, first)
        finally:
            gate.close()
        if runs and runs[0].times != recorder.run.times:
            raise ValueError(
                f"prompt {first} runs on another grid ({len(recorder.run.times)} steps) than prompt 0 "
                f"({len(runs[0].times)}): calibrate with one size and one number of steps"
            )
        if (taken := len(recorder.run.y[0])) < len(recorder.run.times):
            raise ValueError(
                f"the run stopped after {taken} of {len(recorder.run.times)} steps (denoising_end?): "
                "calibrate on whole runs"
            )
        runs.append(recorder.run)
        rows += statistics(recorder.run, len(batch))
        progress(first + len(batch))
    arrays: dict[str, Any] = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    times = np.array(runs[0].times)
    return Profile(times=times, influence=np.zeros((0, len(times))), **arrays), runs


def statistics(run: Trajectory, samples: int) -> list[dict[str, np.ndarray]]:
    """Returns the arrays of a profile, one dictionary a sample. Tracks count with equal weight."""
    rows = []
    for k in range(samples):
        grams, curves = [], []
        for u, x in zip(run.u, run.x, strict=True):
            us = [part(tensor, k, samples) for tensor in u]
            xs = [part(tensor, k, samples) for tensor in x]
            stacked = torch.stack([*map(torch.flatten, us), *map(torch.flatten, xs)]).double()
            gram = (stacked @ stacked.T).numpy()
            grams.append(gram / np.diagonal(gram)[: len(us)].mean())
            curves.append((change(us), change(xs), magnitude(us)))
        change_out, change_in, ratio = np.mean(curves, axis=0)
        gram = np.mean(grams, axis=0)
        rows.append({"gram": gram, "magnitude": ratio, "change_in": change_in, "change_out": change_out})
    return rows


def part(tensor: Tensor, k: int, samples: int) -> Tensor:
    """Returns sample k of a batch; all of it where the first dimension is not the batch."""
    if samples == 1 or tensor.shape[0] % samples:
        return tensor.float()
    return tensor.view(samples, -1, *tensor.shape[1:])[k].float()


def change(values: list[Tensor]) -> np.ndarray:
    """Returns the relative L1 change from the value before, 0 for the first, with shape (N,)."""
    pairs = itertools.pairwise(values)
    return np.array([0.0, *(float((b - a).abs().mean() / a.abs().mean().clamp_min(1e-12)) for a, b in pairs)])


def magnitude(values: list[Tensor]) -> np.ndarray:
    """Returns the mean ratio of norms (over the last dimension) to the value before, 1 for the first."""
    norms = [value.norm(dim=-1) for value in values]
    pairs = itertools.pairwise(norms)
    return np.array([1.0, *(float((b / a.clamp_min(1e-12)).mean()) for a, b in pairs)])
