"""What a gate asks and tells: the interface of recorder, matcher and runtime."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ..clock import Step
from .move import Move

__all__ = ["Update", "Visitor"]


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
