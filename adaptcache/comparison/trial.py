"""Watches runs of a comparison: noise, final latents, computed weights, and memory kept between steps."""

import gc
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from ..engines.diffusers.components import denoisers_of
from ..evaluation.generate import RunRecorder, TimedHook, generate
from ..hooks import SchedulerStep, StepHook
from ..runs import PromptSet, Setup


class MemoryTracker(TimedHook):
    """Measures, after each step, all tensors that were made since the run began and are still there.

    So it needs to know nothing of a method, and sees what a method keeps wherever it keeps it.
    """

    most = 0  # bytes

    def install(self, gate: Any) -> AbstractContextManager[Any]:
        self.gate = gate
        return self.inner.install(gate)

    def on_step_end(self, step: SchedulerStep, latents: Tensor) -> None:
        self.inner.on_step_end(step, latents)
        # What the gate keeps for steps it skips is no part of a method that does not skip at the gate.
        loop = self.gate.loop if type(self.inner) is StepHook else None
        spared = storages(loop.outputs.tensors()) if loop else {}
        self.most = max(self.most, sum((storages(live_tensors()) | spared).values()) - sum(spared.values()))


def live_tensors() -> Iterator[Tensor]:
    """Yields all tensors but those the garbage collector was told to leave out."""
    for thing in gc.get_objects():
        if issubclass(type(thing), Tensor):  # not isinstance: that asks proxies for their __class__
            yield thing


def storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Returns the bytes of the memory behind tensors, by address; views count once."""
    found = {}
    for tensor in tensors:
        if tensor.layout == torch.strided and not tensor.is_meta:
            storage = tensor.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return found


def measure_memory(setup: Setup, prompts: PromptSet, hook: StepHook | None = None) -> int:
    """Returns the most bytes that a run keeps from one step to the next.

    The pipeline's own latents and embeddings are part of it: subtract what the full run keeps.
    """
    tracker = MemoryTracker(hook)
    gc.collect()
    gc.freeze()  # what is there already, weights above all, is left out
    try:
        setup.run(tracker, prompts)
    finally:
        gc.unfreeze()
    return tracker.most


def blocks_of(denoiser: nn.Module) -> list[nn.Module]:
    """Returns the blocks of a denoiser, or the denoiser itself where it has no lists of blocks."""
    lists = [child for child in denoiser.children() if isinstance(child, nn.ModuleList) and len(child)]
    return [block for blocks in lists for block in blocks] or [denoiser]


class MacCounter(ExitStack):
    """Counts the multiplications of the weights of blocks that run in a pipeline, and its copies, while it is entered.

    Methods replace the forwards of blocks and attentions, so only what lies below them shows what was computed, and
    only this tells skipped blocks from skipped calls.
    """

    def __init__(self, pipe: Any) -> None:
        super().__init__()
        self.denoisers = denoisers_of(pipe)
        self.work = self.probe = 0.0  # in all blocks, and in the first one of each denoiser

    def __enter__(self) -> Self:
        for denoiser in self.denoisers:
            for number, block in enumerate(blocks_of(denoiser)):
                for leaf in block.modules():
                    weight = getattr(leaf, "weight", None)
                    if not list(leaf.children()) and isinstance(weight, nn.Parameter) and weight.dim() > 1:
                        count = partial(self._count, weight.numel(), number == 0)
                        self.callback(leaf.register_forward_hook(count).remove)
        return self

    def _count(self, size: int, first: bool, leaf: nn.Module, given: Any, output: Tensor) -> None:
        # each weight of a linear layer is used once a token, each of a convolution once a pixel
        channels = output.shape[1] if isinstance(leaf, (nn.Conv2d, nn.Conv3d)) else output.shape[-1]
        work = size * (output.numel() // channels)
        self.work += work
        self.probe += work * first


@dataclass(frozen=True)
class Trial:
    """What runs on some prompts gave."""

    images: list[np.ndarray]  # one array a prompt, as `Generation` has them
    latents: list[Tensor]  # the final latents of all prompts, a tensor a track
    noise: list[Tensor]  # the latents of the first step, likewise
    steps: float  # steps at which the denoiser was called, in one run
    work: float  # multiplications of block weights, in all runs together
    probe: float  # those of the first block


def run_trial(setup: Setup, prompts: PromptSet, hook: StepHook | None = None, stage: str = "") -> Trial:
    """Runs the pipeline of an exclusive engine as it is, all steps without a hook: what methods hooked in stays."""
    recorder = RunRecorder(hook)
    with MacCounter(pipe_of(setup)) as counter:
        made = generate(setup, prompts, recorder, stage=stage)
    return Trial(made.images, recorder.latents, recorder.noise, made.calls, counter.work, counter.probe)


def latent_error(latents: list[Tensor], full: list[Tensor]) -> float:
    """Returns the distance of final latents from those of the full run, relative to their length."""
    pairs = list(zip(latents, full, strict=True))
    error = sum(float((a.double() - b.double()).square().sum()) for a, b in pairs)
    return float((error / sum(float(b.double().square().sum()) for _, b in pairs)) ** 0.5)


def pipe_of(setup: Setup) -> Any:
    """Returns the pipeline that a setup runs.

    Raises:
        TypeError: It runs none of diffusers.
    """
    if (pipe := getattr(setup.engine, "pipe", None)) is None:
        name = type(setup.engine).__name__
        raise TypeError(
            f"compare runs other methods on a pipeline of diffusers, got a {name}: evaluate takes any engine"
        )
    return pipe
