"""One way of running a pipeline, tried on prompts: images, final latents, time and work."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..call import Call, Prompt
from ..gate import Gate
from ..generate import timed
from ..profiling.record import Progress
from .meter import Meter, Scales, unseen
from .work import BlockCounter

__all__ = ["Trial", "kept", "latent_error", "run"]


@dataclass(frozen=True)
class Trial:
    """What came out of runs on some prompts.

    Arguments:
        images: One array a prompt, with values in [0, 1].
        latents: The final latents of all prompts, a tensor for each track.
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
    meter = Meter(visitor)
    with BlockCounter(pipe) as counter, torch.no_grad():
        images, total, steps = timed(
            pipe, call, prompts, meter, batch_size=batch_size, first=first, progress=progress
        )
    noise, latents = ([torch.cat(track) for track in part] for part in (meter.noise, meter.latents))
    return Trial(images, latents, noise, meter.seconds, total, steps, counter.work)


def kept(pipe: Any, call: Call, prompt: Prompt, visitor: Any = None) -> int:
    """Returns the most bytes that a run of one prompt keeps from one step to the next.

    The pipeline's own latents and embeddings are part of it: take off what the full run keeps.
    """
    scales = Scales(visitor)
    with unseen(), torch.no_grad():
        scales.gate = Gate(pipe, scales).open()
        with closing(scales.gate), scales.stand(scales.gate):
            call(pipe, [prompt])
    return scales.most


def latent_error(trial: Trial, full: Trial) -> float:
    """Returns the distance of the final latents from those of the full run, relative to their length."""
    pairs = list(zip(trial.latents, full.latents, strict=True))
    error = sum(float((a.double() - b.double()).square().sum()) for a, b in pairs)
    return float((error / sum(float(b.double().square().sum()) for _, b in pairs)) ** 0.5)
