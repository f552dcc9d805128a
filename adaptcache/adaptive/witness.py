"""Runs that are watched: what was seen at their computed steps, and how their images ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..call import Call, Prompt
from ..clock import Step
from ..fitting.kernel import Array
from ..gate import Gate, Update
from ..policies.look import signals_of
from ..profiling.record import batches, twin
from ..profiling.trajectory import Trajectory
from ..runtime import Runner
from ..schedule import Schedule

__all__ = ["Witnessed", "landed_images", "witnessed"]

Row = tuple[float, ...]


class Landing:
    """Goes where a recorded run went, with one call of the denoiser: all the pipeline has to do is decode."""

    def __init__(self, run: Trajectory) -> None:
        self.run = run

    def begin(self, times: tuple[float, ...]) -> None:
        """The grid is the recorded one."""

    def computes(self, step: Step) -> bool:
        return False  # but for the first step, which always is

    def update(self, update: Update) -> Tensor:
        return self.run.u[update.track][update.step.index].to(update.move.u)

    def landed(self, update: Update, y: Tensor) -> None:
        """Where it was before."""

    def end(self) -> None:
        """Nothing of it is kept."""


class Witness(Runner):
    """Follows one gear of a schedule and notes the signals of each computed step."""

    def __init__(self, schedule: Schedule, gear: int, rows: Sequence[Sequence[Row]]) -> None:
        super().__init__(schedule, gear=gear)
        self.rows = rows

    def begin(self, times: tuple[float, ...]) -> None:
        super().begin(times)
        self.outputs: list[Tensor] = []
        self.seen: list[Tensor] = []

    def update(self, update: Update) -> Tensor:
        if update.computed and update.track == 0:
            self.outputs.insert(0, update.move.u.clone())
            if 0 < len(update.step.past) <= len(self.rows):
                self.seen.append(signals_of(self.rows[len(update.step.past) - 1], self.outputs).cpu())
        return super().update(update)


@dataclass(frozen=True)
class Witnessed:
    """What runs of P prompts showed.

    Arguments:
        images: Decoded, one a prompt.
        seen: The signals of each computed step after the first, each with shape (P, F).
    """

    images: list[np.ndarray]
    seen: list[Array]


def decoded(pipe: Any, call: Call, prompts: Sequence[Prompt], visitor: Any, number: int) -> list[np.ndarray]:
    """Runs one batch with a visitor and returns what it decodes to."""
    with closing(Gate(pipe, visitor).open()):
        return list(np.asarray(call(pipe, prompts, number, output_type="np")))


def landed_images(
    pipe: Any,
    call: Call,
    prompts: Sequence[Prompt],
    runs: Sequence[Trajectory],
    batch_size: int,
    progress: Callable[[int], None] = lambda done: None,
) -> list[np.ndarray]:
    """Returns the images of recorded full runs, at the cost of one call a batch."""
    own, images = twin(pipe), list[np.ndarray]()
    for run, (first, batch) in zip(runs, batches(prompts, batch_size), strict=True):
        images += decoded(own, call, batch, Landing(run), first)
        progress(first + len(batch))
    return images


def witnessed(
    pipe: Any,
    call: Call,
    prompts: Sequence[Prompt],
    schedule: Schedule,
    gear: int,
    rows: Sequence[Sequence[Row]],
    *,
    batch_size: int = 1,
    offset: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> Witnessed:
    """Runs prompts in one gear of a schedule.

    Arguments:
        pipe: A diffusers pipeline; it is not changed.
        call: How to call it.
        prompts: P prompts.
        schedule: What to run by.
        gear: The gear to stay in.
        rows: What to look at after each computed step but the first.
        batch_size: How many prompts a run has.
        offset: Added to the number of a prompt, which sets its noise.
        progress: Told the number of prompts done after each run.
    """
    own, witness = twin(pipe), Witness(schedule, gear, rows)
    images, seen = list[np.ndarray](), list[list[Tensor]]()
    for first, batch in batches(prompts, batch_size):
        images += decoded(own, call, batch, witness, first + offset)
        # Where a prompt gives several samples, the one that changes most stands for it.
        seen.append([signals.view(len(batch), -1, signals.shape[1]).amax(1) for signals in witness.seen])
        progress(first + len(batch))
    joined = [torch.cat(parts).double().numpy() for parts in zip(*seen, strict=True)]
    return Witnessed(images, joined)
