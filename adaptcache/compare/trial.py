"""One way of running a pipeline, tried on prompts: images, final latents, time and work."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..call import Call, Prompt
from ..gate import Gate, Update
from ..generate import Stopwatch
from ..profiling.record import Progress, batches
from .work import BlockCounter

__all__ = ["Trial", "latent_error", "run"]


class Meter(Stopwatch):
    """Times a run, and keeps its noise and where it ends."""

    def __init__(self, inner: Any = None) -> None:
        super().__init__(inner)
        self.noise: list[Tensor] = []
        self.latents: list[Tensor] = []

    def update(self, update: Update) -> Tensor:
        if update.step.index == 0:
            self.noise.append(update.move.x.detach().cpu())
        return super().update(update)

    def landed(self, update: Update, y: Tensor) -> None:
        if update.step.index == len(update.step.times) - 1:
            self.latents.append(y.detach().float().cpu())


@dataclass(frozen=True)
class Trial:
    """What came out of runs on some prompts.

    Arguments:
        images: One array a prompt, with values in [0, 1].
        latents: The final latents, a tensor for each batch and track.
        noise: The latents of the first step, likewise.
        loop: Seconds in the denoising loop, summed over batches.
        total: Seconds in the pipeline.
        steps: Steps at which the denoiser was called, in one run.
        work: Multiplications of block weights, in all runs together.
    """

    images: list[np.ndarray]
    latents: list[Tensor]
    noise: list[Tensor]
    loop: float
    total: float
    steps: float
    work: float


def run(
    pipe: Any,
    call: Call,
    prompts: Sequence[Prompt],
    visitor: Any = None,
    *,
    batch_size: int = 1,
    first: int = 0,
    progress: Progress = lambda done: None,
) -> Trial:
    """Runs a pipeline as it is: what methods have hooked into it stays.

    Arguments:
        pipe: A pipeline that nobody else uses.
        call: How to call it.
        prompts: What to generate.
        visitor: What decides where the denoiser is called; None calls it at every step.
        batch_size: How many prompts a run has.
        first: The number of the first prompt, which sets the noise.
        progress: Told the number of prompts done after each run.
    """
    meter, images, total, calls, runs = Meter(visitor), list[np.ndarray](), 0.0, 0, 0
    with BlockCounter(pipe) as counter, torch.no_grad():
        for start, batch in batches(prompts, batch_size):
            gate = Gate(pipe, meter).open()
            since = time.perf_counter()
            try:
                images += list(np.asarray(call(pipe, batch, first + start, output_type="np")))
            finally:
                gate.close()
            total += time.perf_counter() - since
            calls += sum(any(branches) for branches in gate.calls)
            runs += 1
            progress(start + len(batch))
    return Trial(images, meter.latents, meter.noise, meter.seconds, total, calls / runs, counter.work)


def latent_error(trial: Trial, full: Trial) -> float:
    """Returns the distance of the final latents from those of the full run, relative to their length."""
    pairs = list(zip(trial.latents, full.latents, strict=True))
    error = sum(float((a.double() - b.double()).square().sum()) for a, b in pairs)
    return float((error / sum(float(b.double().square().sum()) for _, b in pairs)) ** 0.5)
