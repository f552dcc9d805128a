"""Generates decoded images, timed: what every measurement of quality and speed is made of."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..engines.diffusers.finer import refined
from ..engines.diffusers.gate import Gate
from ..hooks import Update
from ..profiling.reference import Progress, batches, twin
from ..runs import Call, Prompt
from ..runtime.runner import runner_for
from ..schedule.schedule import Schedule
from ..step import Step

__all__ = ["Generation", "Stopwatch", "generate", "synchronize", "timed"]


class Stopwatch:
    """Times the denoising loop: from the first denoiser call to the last landing."""

    def __init__(self, inner: Any = None) -> None:
        self.inner, self.seconds = inner, 0.0

    def stand(self, gate: Gate) -> AbstractContextManager[Any]:
        """Stands at the sites inside of the denoiser, for visitors that have any."""
        stand = getattr(self.inner, "stand", None)
        context: AbstractContextManager[Any] = stand(gate) if stand else nullcontext()
        return context

    def begin(self, times: tuple[float, ...]) -> None:
        if self.inner:
            self.inner.begin(times)

    def computes(self, step: Step) -> bool:
        if step.index == 0:
            synchronize()
            self.since = time.perf_counter()
        return not self.inner or self.inner.computes(step)

    def update(self, update: Update) -> Tensor:
        return self.inner.update(update) if self.inner else update.move.u

    def landed(self, update: Update, y: Tensor) -> None:
        """Only the end counts."""

    def end(self) -> None:
        synchronize()
        self.seconds += time.perf_counter() - self.since
        if self.inner:
            self.inner.end()


def synchronize() -> None:
    """Waits for the accelerator, if there is one: clocks that do not wait measure nothing."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@dataclass(frozen=True)
class Generation:
    """Images of some prompts, and what they cost.

    Arguments:
        images: One array a prompt, with values in [0, 1] and shape (H, W, C) or (F, H, W, C); sound with
            values in [-1, 1] and shape (channels, samples).
        loop: Seconds in the denoising loop, summed over batches.
        total: Seconds in the pipeline.
        calls: Steps whose denoiser was called, in one run.
    """

    images: list[np.ndarray]
    loop: float
    total: float
    calls: int


def generate(
    pipe: Any,
    call: Call,
    prompts: Sequence[Prompt],
    schedule: Schedule | None = None,
    *,
    batch_size: int = 1,
    finer: int = 1,
    offset: int = 0,
    progress: Progress = lambda done: None,
) -> Generation:
    """Generates decoded images, timed.

    Arguments:
        pipe: A diffusers pipeline; it is not changed.
        call: How to call it.
        prompts: What to generate.
        schedule: What to run by; None runs in full.
        batch_size: How many prompts a run has.
        finer: Take this many steps for each step (a reference closer to the exact solution).
        offset: Added to the number of a prompt, which sets its noise.
        progress: Told the number of prompts done after each run.
    """
    own = twin(pipe)
    own.scheduler = refined(own.scheduler, finer)
    watch = Stopwatch(runner_for(pipe, schedule) if schedule else None)
    images, total, calls = timed(
        own, call, prompts, watch, batch_size=batch_size, first=offset, progress=progress
    )
    return Generation(images, watch.seconds, total, int(calls))


def timed(
    pipe: Any,
    call: Call,
    prompts: Sequence[Prompt],
    watch: Stopwatch,
    *,
    batch_size: int = 1,
    first: int = 0,
    progress: Progress = lambda done: None,
) -> tuple[list[np.ndarray], float, float]:
    """Runs a pipeline as it is, batch by batch, under a stopwatch.

    Returns:
        One image a prompt, the seconds in the pipeline, and the mean number of steps of a run whose
        denoiser was called.
    """
    images, total, calls, runs = list[np.ndarray](), 0.0, 0, 0
    for start, batch in batches(prompts, batch_size):
        gate = Gate(pipe, watch).open()
        since = time.perf_counter()
        with closing(gate), watch.stand(gate):
            images += list(np.asarray(call(pipe, batch, first + start, output_type="np")))
        total += time.perf_counter() - since
        calls += sum(any(branches) for branches in gate.calls)
        runs += 1
        progress(start + len(batch))
    return images, total, calls / runs
