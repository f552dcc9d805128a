"""Generates decoded outputs, timed: what every measurement of quality and speed is made of."""

import time
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..hooks import SchedulerStep, StepHook
from ..profiling.measure import content_key
from ..runs import PromptSet, Setup, synchronize
from ..runtime.runner import Runner
from ..schedule.schedule import Schedule
from ..step import Step
from .metrics import check_images

if TYPE_CHECKING:
    Forwarding = StepHook
else:
    Forwarding = object  # so that what a wrapper does not have itself is looked for in the hook within


class TimedHook(Forwarding):
    """Times the denoising loops of a hook, which does all else: from the first denoiser call to the last step."""

    def __init__(self, inner: StepHook | None = None) -> None:
        self.inner, self.seconds = inner or StepHook(), 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def should_compute(self, step: Step) -> bool:
        if step.index == 0:
            synchronize()
            self.since = time.perf_counter()
        return self.inner.should_compute(step)

    def on_run_end(self) -> None:
        synchronize()
        self.seconds += time.perf_counter() - self.since
        self.inner.on_run_end()


class RunRecorder(TimedHook):
    """Keeps the noise that runs start from and the latents they end at."""

    def __init__(self, inner: StepHook | None = None) -> None:
        super().__init__(inner)
        self._noise: dict[int, list[Tensor]] = defaultdict(list)  # by track
        self._latents: dict[int, list[Tensor]] = defaultdict(list)

    @property
    def noise(self) -> list[Tensor]:
        """The latents of the first step of all prompts, a tensor a track."""
        return [torch.cat(self._noise[track]) for track in sorted(self._noise)]

    @property
    def latents(self) -> list[Tensor]:
        """The final latents of all prompts, a tensor a track."""
        return [torch.cat(self._latents[track]) for track in sorted(self._latents)]

    def model_output(self, step: SchedulerStep) -> Tensor:
        if step.step.index == 0:
            self._noise[step.track].append(step.x.detach().cpu())
        return self.inner.model_output(step)

    def on_step_end(self, step: SchedulerStep, latents: Tensor) -> None:
        self.inner.on_step_end(step, latents)
        if step.step.index == len(step.step.times) - 1:
            self._latents[step.track].append(latents.detach().float().cpu())


def run_latents(setup: Setup, prompts: PromptSet, hook: StepHook | None = None) -> list[Tensor]:
    """Returns the final latents of all prompts, a tensor a track; nothing is decoded."""
    recorder = RunRecorder(hook)
    for batch in setup.batches(prompts):
        setup.run(recorder, batch)
    return recorder.latents


@dataclass(frozen=True)
class Generation:
    """Decoded outputs of some prompts, and what they cost."""

    # one array a prompt, with values in [0, 1] and shape (H, W, C) or (F, H, W, C); sound with values in [-1, 1] and
    # shape (channels, samples)
    images: list[np.ndarray]
    loop: float  # seconds in the denoising loops, summed over batches
    total: float  # seconds in the pipeline
    calls: float  # steps whose denoiser was called, in one run; the mean where runs differ
    steps: int  # all steps of a run


def generate(
    setup: Setup,
    prompts: PromptSet,
    schedule: Schedule | StepHook | None = None,
    *,
    reference: bool = False,
    stage: str = "",
) -> Generation:
    """Generates decoded outputs, timed, in batches, by a schedule or a hook; without one in full.

    Reference runs take `setup.refine` steps for each step. Progress is reported as `stage`, if that has a name.
    """
    if isinstance(schedule, Schedule):
        setup.engine.check(schedule)
        schedule = Runner(schedule, read=getattr(setup.engine, "read_run", None))
    hook = TimedHook(schedule)
    images, total, calls, runs, steps = list[np.ndarray](), 0.0, 0, 0, 0
    for batch in setup.batches(prompts):
        since = time.perf_counter()
        outcome = setup.run(hook, batch, decode=True, reference=reference)
        total += time.perf_counter() - since
        images += outcome.images
        calls, steps = calls + outcome.computed, len(outcome.calls)
        runs += 1
        if stage:
            setup.progress(stage, len(images), len(prompts))
    return Generation(images, hook.seconds, total, calls / max(runs, 1), steps)


def reference_images(setup: Setup, prompts: PromptSet) -> list[np.ndarray]:
    """Returns the decoded outputs of full runs, from the cache where they are in it."""
    images = list[np.ndarray]()
    for batch in setup.batches(prompts):
        images += reference_batch(setup, batch)
        setup.progress("held-out, full", len(images), len(prompts))
    return images


def reference_batch(setup: Setup, batch: PromptSet) -> list[np.ndarray]:
    """Returns the decoded outputs of one full run; it has a file of its own in the cache, for all who want it.

    Raises:
        ValueError: One of them is not finite.
    """
    key = content_key(setup, batch.prompts, batch.first, setup.refine, "images") if setup.cache else ""
    if setup.cache and (found := setup.cache.load(key, "images")) is not None:
        return [found[name].numpy() for name in sorted(found)]
    images = generate(setup, batch, reference=True).images
    check_images(images, batch.first, "the full run")
    if setup.cache:
        # Contiguous, as safetensors writes the memory and not the values.
        arrays = {f"{k:05d}": torch.from_numpy(np.ascontiguousarray(image)) for k, image in enumerate(images)}
        setup.cache.save(key, "images", arrays)
    return images
