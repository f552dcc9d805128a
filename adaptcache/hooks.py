"""What a gate asks and tells: the interface of recorder, matcher and runtime."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from .step import Step


@dataclass(frozen=True)
class Update:
    """A step the scheduler is about to take.

    Arguments:
        step: Where the run is.
        track: Which scheduler: 0 is the pipeline's own, 1 and up are its copies (audio next to video).
        move: The scheduler's step: the latents `x`, the guided output `u` (which means nothing where
            `computed` is false), both with shape (B, *), and a way to try it `dry`.
        computed: Whether the denoiser was called.
    """

    step: Step
    track: int
    move: Move
    computed: bool
    view = 0

    @property
    def x(self) -> Tensor:
        """The latents before the step, with shape (B, *)."""
        return self.move.x

    @property
    def u(self) -> Tensor:
        """The guided model output, with shape (B, *)."""
        return self.move.u


SchedulerStep = Update


class Visitor(Protocol):
    """What a gate asks and tells. Recorder, matcher and runtime are visitors."""

    def begin(self, times: tuple[float, ...]) -> None:
        """A run has started, on a grid of times with shape (N,). Told before the first update."""

    def computes(self, step: Step) -> bool:
        """Whether to call the denoiser at this step. Asked once a step.

        The first step is always computed, whatever is said. It is asked before `begin`, with no times:
        only the first call of `scheduler.step` tells for sure where image-to-image starts in the grid.
        """

    def update(self, update: Update) -> Tensor:
        """Returns the model output the scheduler is to use, with the shape of `update.move.u`."""

    def landed(self, update: Update, y: Tensor) -> None:
        """The scheduler has landed on `y`, with shape (B, *)."""

    def end(self) -> None:
        """The run is over, or was abandoned: let go of its tensors."""


# One step of a scheduler, about to be taken.


class Move:
    """One call of `scheduler.step`, that can be made for real or tried on a copy."""

    def __init__(self, scheduler: Any, method: Callable[..., Any], bound: inspect.BoundArguments) -> None:
        self.scheduler, self.method, self.bound = scheduler, method, bound
        self.x: Tensor = bound.arguments["sample"]
        self.u: Tensor = bound.arguments["model_output"]

    def make(self, u: Tensor) -> Any:
        """Steps the scheduler with the model output `u` and returns what it returns."""
        self.bound.arguments["model_output"] = u
        return self.method(*self.bound.args, **self.bound.kwargs)

    def dry(self, u: Tensor) -> Tensor:
        """Returns where a copy of the scheduler lands with `u`, in the dtype of `u`.

        Where that is the dtype of the real step, the noise is what the real step will draw.
        """
        arguments = dict(self.bound.arguments)
        # Brownian trees do not survive a copy, nor need one: an interval has the same noise every time.
        shared = {id(value): value for value in vars(self.scheduler).values() if callable(value)}
        # Latents that are kept in single precision stay in it where the outputs are in half (Wan).
        x = self.x if u.dtype == self.u.dtype else self.x.to(u.dtype)
        arguments |= {"self": copy.deepcopy(self.scheduler, shared), "model_output": u, "sample": x}
        if (generator := arguments.get("generator")) is not None:
            many = isinstance(generator, list)
            arguments["generator"] = [g.clone_state() for g in generator] if many else generator.clone_state()
        bound = inspect.BoundArguments(self.bound.signature, arguments)
        with torch.random.fork_rng(devices=[u.device] if u.device.type == "cuda" else []):
            return landing(self.method(*bound.args, **bound.kwargs))


def landing(result: Any) -> Tensor:
    """Returns the latents in what `scheduler.step` returned."""
    latents: Tensor = result[0] if isinstance(result, tuple) else result.prev_sample
    return latents
