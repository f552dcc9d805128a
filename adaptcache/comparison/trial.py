"""Watches a run of a comparison: its time, its noise, where it ends, and what is kept between its steps."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from ..engines.diffusers.gate import Gate
from ..engines.diffusers.watch import denoisers_of
from ..evaluation.generate import Stopwatch, timed
from ..hooks import Update
from ..profiling.reference import Progress
from ..runs import Call, Prompt


class Meter(Stopwatch):
    """Times runs, and keeps their noise and where they end, by track."""

    def __init__(self, inner: Any = None) -> None:
        super().__init__(inner)
        self.noise: list[list[Tensor]] = []
        self.latents: list[list[Tensor]] = []

    def update(self, update: Update) -> Tensor:
        if update.step.index == 0:
            put(self.noise, update.track, update.move.x.detach().cpu())
        return super().update(update)

    def landed(self, update: Update, y: Tensor) -> None:
        if update.step.index == len(update.step.times) - 1:
            put(self.latents, update.track, y.detach().float().cpu())


def put(tracks: list[list[Tensor]], track: int, value: Tensor) -> None:
    """Adds a value to those of a track."""
    while len(tracks) <= track:
        tracks.append([])
    tracks[track].append(value)


class Scales(Stopwatch):
    """Weighs, after each step, all tensors that came up since the run began and are still there.

    So it needs to know nothing of a method, and sees what a method keeps wherever it keeps it.

    Arguments:
        inner: What decides at the gate.
    """

    def __init__(self, inner: Any = None) -> None:
        super().__init__(inner)
        self.most = 0  # bytes
        self.gate: Gate

    def landed(self, update: Update, y: Tensor) -> None:
        # What the gate keeps for steps it skips is no part of a method that does not skip at the gate.
        run = None if self.inner else self.gate.run
        spared = storages(run.outputs.tensors()) if run else {}
        self.most = max(self.most, sum((storages(alive()) | spared).values()) - sum(spared.values()))


@contextmanager
def unseen() -> Iterator[None]:
    """Leaves out of `alive` what is there already: weights above all."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def alive() -> Iterator[Tensor]:
    """Yields the tensors that came up since `unseen`."""
    for thing in gc.get_objects():
        if issubclass(type(thing), Tensor):  # not isinstance: that asks proxies for their __class__
            yield thing


def storages(tensors: Iterator[Tensor]) -> dict[int, int]:
    """Returns the bytes of the memory behind tensors, by address; views count once."""
    found = {}
    for tensor in tensors:
        if tensor.layout == torch.strided and not tensor.is_meta:
            storage = tensor.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return found


# Counts the work done inside a denoiser: what tells skipped blocks from skipped calls.


def blocks_of(denoiser: nn.Module) -> list[nn.Module]:
    """Returns the blocks of a denoiser, or the denoiser itself where it has no lists of blocks."""
    lists = [child for child in denoiser.children() if isinstance(child, nn.ModuleList) and len(child)]
    return [block for blocks in lists for block in blocks] or [denoiser]


class BlockCounter:
    """Adds up the share of each block that is really computed, while it is entered.

    The share is that of the multiplications of the block's weights that ran. Methods replace the
    forwards of blocks and attentions, so only what lies below them tells what was computed.

    Arguments:
        pipe: A diffusers pipeline.
    """

    def __init__(self, pipe: Any) -> None:
        self.denoisers = denoisers_of(pipe)
        self.blocks = len(blocks_of(self.denoisers[0]))
        self.work = 0.0
        self._undo: list[Any] = []

    def __enter__(self) -> Self:
        for denoiser in self.denoisers:
            for block in blocks_of(denoiser):
                for leaf in block.modules():
                    weight = getattr(leaf, "weight", None)
                    if not list(leaf.children()) and isinstance(weight, nn.Parameter) and weight.dim() > 1:
                        self._undo.append(leaf.register_forward_hook(partial(self._ran, weight.numel())))
        return self

    def _ran(self, size: int, leaf: nn.Module, given: Any, output: Tensor) -> None:
        # each weight of a linear layer is used once a token, each of a convolution once a pixel
        channels = output.shape[1] if isinstance(leaf, (nn.Conv2d, nn.Conv3d)) else output.shape[-1]
        self.work += size * (output.numel() // channels)

    def __exit__(self, *_: object) -> None:
        for handle in self._undo:
            handle.remove()
        self._undo.clear()


# One way of running a pipeline, tried on prompts: images, final latents, time and work.


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
