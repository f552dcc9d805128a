"""What is kept of a full run, and the watching visitor that keeps it."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from ..clock import Step
from ..gate import Update
from .statistics import check_finite

__all__ = ["Recorder", "Trajectory"]


@dataclass
class Trajectory:
    """One full run of a batch of B prompts; lists have one entry a track (video, audio, ...).

    Arguments:
        times: The grid, with shape (N,).
        u: The guided outputs, N tensors with shape (B, *).
        x: The latents before each step, N tensors with shape (B, *).
        y: Where the scheduler landed, N tensors with shape (B, *).
    """

    times: tuple[float, ...] = ()
    u: list[list[Tensor]] = field(default_factory=list)
    x: list[list[Tensor]] = field(default_factory=list)
    y: list[list[Tensor]] = field(default_factory=list)

    def head(self, samples: int, of: int) -> Trajectory:
        """Returns the trajectory of the first samples of a batch."""

        def cut(tracks: list[list[Tensor]]) -> list[list[Tensor]]:
            return [[value[: len(value) * samples // of] for value in track] for track in tracks]

        return Trajectory(self.times, cut(self.u), cut(self.x), cut(self.y))


class Recorder:
    """Computes every step and keeps every `stride`-th, on the CPU.

    Arguments:
        stride: Of the steps that are kept.
        first: The number of the batch's first prompt, for errors.
        samples: How many prompts the batch has.
    """

    def __init__(self, stride: int = 1, first: int = 0, samples: int = 1) -> None:
        self.stride, self.first, self.samples = stride, first, samples
        self.run = Trajectory()

    def begin(self, times: tuple[float, ...]) -> None:
        self.run = Trajectory(times[:: self.stride])

    def computes(self, step: Step) -> bool:
        return True

    def update(self, update: Update) -> Tensor:
        if update.step.index % self.stride == 0:
            self._keep(self.run.u, update, update.move.u, "the denoiser's output")
            self._keep(self.run.x, update, update.move.x, "the latents before the step")
        return update.move.u

    def landed(self, update: Update, y: Tensor) -> None:
        if (update.step.index + 1) % self.stride == 0:
            self._keep(self.run.y, update, y, "the latents after the step")

    def end(self) -> None:
        """Keeps the trajectory: it is what was asked for."""

    def _keep(self, tracks: list[list[Tensor]], update: Update, value: Tensor, what: str) -> None:
        while len(tracks) <= update.track:
            tracks.append([])
        kept = value.detach().to("cpu", copy=True).contiguous()
        check_finite(kept, what, update.step.index, self.first, self.samples)  # now, not hours later
        tracks[update.track].append(kept)
