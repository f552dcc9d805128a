"""What a run is: numbered prompts, how the pipeline is called, who runs it, and what travels with that."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from numbers import Real
from types import NoneType
from typing import Any, Protocol, overload

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from .cache import Cache
from .distributed import ALONE, Ranks
from .errors import LESS_MEMORY, is_out_of_memory
from .hooks import StepHook

Prompt = str | Mapping[str, Any]  # a mapping holds the arguments of one sample: class_labels, image, ...
Progress = Callable[[str, int, int], None]  # stage, done, of

SEEDS = 2**62  # prompt number k draws with seed + k, and generators take 64 bits
MANY = re.compile("num_.*_per_prompt")
SET_HERE = {"generator", "latents", "num_inference_steps", "output_type", "prompt", "return_dict"}


def silent(stage: str, done: int, of: int) -> None:
    """Reports no progress."""


def whole(name: str, value: Any) -> int:
    """Returns a whole number, of numpy too, as Python's; `TypeError` for others."""
    try:
        return int(operator.index(value))
    except TypeError:
        raise TypeError(f"{name} must be a whole number, got {value!r:.40}") from None


def listed(name: str, values: Any) -> tuple[Any, ...]:
    """Returns several values, of an array or a generator too.

    Raises:
        TypeError: They are one text, or one number.
    """
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise TypeError(f"{name} must be a list, got {values!r:.40}: write [{values!r:.40}]")
    return tuple(values)


def plain(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Returns arguments with numbers of numpy and torch as Python's: schedules keep and compare them."""

    def number(value: Any) -> Any:
        one = isinstance(value, np.generic) or (isinstance(value, Tensor) and value.ndim == 0)
        return value.item() if one else value

    found: dict[str, Any] = tree_map(number, dict(arguments))
    return found


def check_numbers(options: Any, *names: str) -> None:
    """Raises `TypeError` where a field is neither a number, nor several, nor None; true and false are none."""
    for name in names:
        value = getattr(options, name)
        for one in value if isinstance(value, tuple) else (value,):
            if isinstance(one, bool) or not isinstance(one, (Real, NoneType)):
                raise TypeError(f"{name} must be a number, got {one!r:.40}")


def fork_rng() -> AbstractContextManager[None]:
    """Leaves the global random number generators as they were."""
    devices = [torch.accelerator.current_device_index()] if torch.accelerator.is_available() else []
    kind = torch.accelerator.current_accelerator().type if devices else "cuda"  # type: ignore[union-attr]
    return torch.random.fork_rng(devices=devices, device_type=kind)


def synchronize() -> None:
    """Waits for the accelerator, if there is one: clocks that do not wait measure nothing."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def in_double(value: Tensor) -> Tensor:
    """Returns a tensor in double precision: on the CPU where its device has none (MPS, some XPU)."""
    try:
        return value.double()
    except (TypeError, RuntimeError):
        return value.cpu().double()


@dataclass(frozen=True)
class PromptSet:
    """Numbered prompts: number k draws its noise with seed + k, in whatever batch it is run."""

    prompts: tuple[Prompt, ...]  # texts, or mappings of arguments
    first: int = 0  # the number of the first one

    @classmethod
    def of(cls, prompts: Iterable[Prompt], first: int = 0, what: str = "prompts") -> PromptSet:
        """Checks prompts of a user.

        Raises:
            TypeError: One text instead of a list, or a prompt that is neither text nor a mapping.
            ValueError: Prompts that name different arguments.
        """
        if isinstance(prompts, PromptSet):
            return replace(prompts, first=prompts.first or first)
        if isinstance(prompts, (str, Mapping)):
            raise TypeError(f"{what} must be a list, got one {type(prompts).__name__}: write [{prompts!r:.40}]")
        if not isinstance(prompts, Iterable):
            raise TypeError(f"{what} must be a list of texts, or of mappings of arguments, got {prompts!r:.40}")
        rows, first = tuple(prompts), whole("first", first)
        for number, row in enumerate(rows):
            if not isinstance(row, (str, Mapping)):
                raise TypeError(
                    f"{what}[{number}] is a {type(row).__name__}; a prompt is a text, or a mapping of arguments"
                )
        keys = [{"prompt"} if isinstance(row, str) else set(row) for row in rows]
        for number, names in enumerate(keys):
            if taken := sorted((SET_HERE - {"prompt"}) & names):
                raise ValueError(f"adaptcache sets {', '.join(taken)} itself; remove it from {what}[{number}]")
            if differ := sorted(names ^ keys[0]):
                raise ValueError(
                    f"{what}[{number}] and {what}[0] do not name the same arguments ({', '.join(differ)}): "
                    "prompts of one set are joined to batches; give the argument to all of them, or to none"
                )
        return cls(rows, first)

    def batches(self, size: int) -> Iterator[PromptSet]:
        """Yields the prompts in batches of `size`, each with its own first number."""
        for start in range(0, len(self), size):
            yield self[start : start + size]

    def __len__(self) -> int:
        return len(self.prompts)

    def __iter__(self) -> Iterator[Prompt]:
        return iter(self.prompts)

    @overload
    def __getitem__(self, at: int) -> Prompt: ...
    @overload
    def __getitem__(self, at: slice) -> PromptSet: ...
    def __getitem__(self, at: int | slice) -> Prompt | PromptSet:
        if isinstance(at, int):
            return self.prompts[at]
        return PromptSet(self.prompts[at], self.first + at.indices(len(self))[0])


@dataclass(frozen=True)
class PipelineCall:
    """How a pipeline is called: everything but the prompt and its noise."""

    num_inference_steps: int  # the steps of a full run
    # further arguments of the pipeline's `__call__`: height, width, guidance_scale, ...
    pipe_kwargs: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0  # the noise of prompt number k is drawn with seed + k, on the CPU: the same on every device

    def __post_init__(self) -> None:
        for name in ("num_inference_steps", "seed"):
            object.__setattr__(self, name, whole(name, getattr(self, name)))
        object.__setattr__(self, "pipe_kwargs", plain(self.pipe_kwargs))
        if self.num_inference_steps < 1:
            raise ValueError(f"num_inference_steps must be 1 or more, got {self.num_inference_steps}")
        if not -SEEDS <= self.seed < SEEDS:
            raise ValueError(f"seed must be from -2**62 to 2**62, got {self.seed}: take a smaller one")
        given = {name for name, value in self.pipe_kwargs.items() if (name, value) != ("prompt", None)}
        if taken := sorted(SET_HERE & given):
            raise ValueError(f"adaptcache sets {', '.join(taken)} itself; remove it from the arguments of the call")
        if many := sorted(name for name in given if MANY.fullmatch(name) and self.pipe_kwargs[name] not in (None, 1)):
            raise ValueError(f"a prompt counts as one sample here: leave {many[0]} out, and give more prompts")

    def changed(self, arguments: Mapping[str, Any]) -> PipelineCall:
        """Returns the call with other arguments, `num_inference_steps` among them."""
        rest = {**self.pipe_kwargs, **arguments}
        steps = rest.pop("num_inference_steps", self.num_inference_steps)
        return replace(self, num_inference_steps=steps, pipe_kwargs=rest)


@dataclass(frozen=True)
class Job:
    """One run: a batch of prompts."""

    call: PipelineCall  # how the pipeline is called
    prompts: PromptSet  # the batch
    decode: bool = False  # whether decoded outputs are wanted, and not only the loop
    refine: int = 1  # steps taken in each step: above 1 the run is a finer reference


@dataclass(frozen=True)
class Outcome:
    """What a run gave."""

    # Decoded outputs, one a prompt: values in [0, 1] with shape (H, W, C) or (F, H, W, C); sound in [-1, 1] with shape
    # (channels, samples). Empty where the job did not ask for them.
    images: list[np.ndarray]
    calls: tuple[tuple[bool, ...], ...]  # denoiser calls by step and branch, of all loops: True where one was made
    loops: int = 1  # how many denoising loops the call had

    @property
    def computed(self) -> int:
        """How many steps called the denoiser."""
        return sum(map(any, self.calls))


class Engine(Protocol):
    """Who runs the denoising loop: diffusers, ComfyUI, a loop of a test."""

    def run(self, hook: StepHook, job: Job) -> Outcome:
        """Runs one batch with a hook. May be called from several threads; leaves the pipeline as it was."""

    def takes(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Returns those arguments that the pipeline's call names."""

    def identity(self, call: PipelineCall) -> Any:
        """Returns all that outputs depend on, as values that `cache.feed` takes."""

    def describe(self, call: PipelineCall) -> tuple[dict[str, Any], str, str, dict[str, Any]]:
        """Returns the fields of `schedule.Denoiser`, the scheduler's name, a name for schedules, and provenance."""

    def check(self, schedule: Any, strict: bool = False) -> list[Any]:
        """Returns how the pipeline differs from what a schedule was fitted on; `ScheduleError` for no fit."""

    def preflight(self, call: PipelineCall, prompts: PromptSet) -> None:
        """Raises at once what would be found after work: unknown arguments, caches that are on, ..."""


@dataclass(frozen=True)
class Setup:
    """What travels together through calibration, evaluation, comparison and tuning."""

    engine: Engine  # who runs the pipeline
    call: PipelineCall  # how it is called
    batch_size: int = 1  # how many prompts a run has
    cache: Cache | None = None  # where full runs are kept; None keeps none
    ranks: Ranks = ALONE  # the processes that share the work
    progress: Progress = silent  # called with the stage, what is done, and of how much
    refine: int = 1  # steps that a reference run takes in each step; above 1 it is nearer to the exact solution
    loop: int | None = None  # which loop of a call is measured; None: the first one, or a longer one after it

    def __post_init__(self) -> None:
        object.__setattr__(self, "batch_size", whole("batch_size", self.batch_size))
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more, got {self.batch_size}")

    def run(self, hook: StepHook, prompts: PromptSet, *, decode: bool = False, reference: bool = False) -> Outcome:
        """Runs one batch.

        Arguments:
            reference: Whether it is a reference run, which may be refined.

        Raises:
            MemoryError: Or `torch.OutOfMemoryError`, with a note that names what helps.
        """
        hook.loop = None if hook.follows_loops else self.loop
        try:
            return self.engine.run(hook, Job(self.call, prompts, decode, self.refine if reference else 1))
        except Exception as error:
            if is_out_of_memory(error):
                error.add_note(
                    f"{LESS_MEMORY} (this run: {len(prompts)} prompts, {dict(self.call.pipe_kwargs)})"[:500]
                )
            raise

    def batches(self, prompts: PromptSet) -> list[PromptSet]:
        """Returns the prompts in batches."""
        return list(prompts.batches(self.batch_size))

    def stage(self, name: str, of: int, done_before: int = 0) -> Callable[[int], None]:
        """Returns what reports how many of `of` are done in a stage."""
        return lambda done: self.progress(name, min(done_before + done, of), of)
