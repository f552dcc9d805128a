"""Watches a run of a comparison: its time, its noise, where it ends, and what is kept between its steps."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..gate import Gate, Update
from ..generate import Stopwatch

__all__ = ["Meter", "Scales", "unseen"]


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
