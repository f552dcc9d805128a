"""What is done of a profile: each batch and each step's influence is on disk as soon as it is measured."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from ..files import write_atomically
from .trajectory import Trajectory

__all__ = ["Parts"]

Rows = list[dict[str, np.ndarray]]


class Parts:
    """The finished parts of one profile, in a folder. Files that are not whole are measured again.

    Arguments:
        folder: Where they are; ranks may share it, or have one each.
        rank: Who writes: each rank has a file of its own for the influence.
    """

    def __init__(self, folder: Path, rank: int = 0) -> None:
        self.folder, self.rank = folder, rank

    def load(self, number: int) -> tuple[Trajectory, Rows] | None:
        """Returns the trajectory of a batch and the statistics of its samples, or None."""
        try:
            tensors = load_file(self._batch(number))
            times = tuple(map(float, tensors.pop("times")))
            tracks: dict[str, list[list[torch.Tensor]]] = {"u": [], "x": [], "y": []}
            for name in sorted(name for name in tensors if name[:2] in ("u.", "x.", "y.")):
                tracks[name[0]].append(list(tensors.pop(name)))
            samples = len(next(iter(tensors.values())))
        except (OSError, ValueError, KeyError, StopIteration, SafetensorError):
            return None
        rows = [{name: stacked[k].numpy() for name, stacked in tensors.items()} for k in range(samples)]
        return Trajectory(times, **tracks), rows

    def save(self, number: int, run: Trajectory, rows: Rows) -> None:
        """Keeps a batch."""
        tensors = {
            f"{kind}.{track}": torch.stack(values)
            for kind in ("u", "x", "y")
            for track, values in enumerate(getattr(run, kind))
        }
        tensors |= {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]}
        tensors["times"] = torch.tensor(run.times, dtype=torch.float64)
        write_atomically(self._batch(number), save(tensors))

    def runs(self, numbers: Iterable[int]) -> list[Trajectory] | None:
        """Returns the trajectories of the batches with these numbers, or None where one is missing."""
        runs: list[Trajectory] = []
        for number in numbers:
            if (found := self.load(number)) is None:
                return None
            runs.append(found[0])
        return runs

    def load_influence(self) -> dict[int, float]:
        """Returns the influence of each step that was measured so far, by any rank that wrote here."""
        known: dict[int, float] = {}
        for path in sorted(self.folder.glob("influence-*.json")):
            try:
                known |= {int(step): float(value) for step, value in json.loads(path.read_text()).items()}
            except (OSError, ValueError, TypeError, AttributeError):
                continue
        return known

    def save_influence(self, values: dict[int, float]) -> None:
        """Keeps the influence of steps, to the last bit."""
        write_atomically(self.folder / f"influence-{self.rank:05d}.json", json.dumps(values).encode())

    def _batch(self, number: int) -> Path:
        return self.folder / f"batch-{number:05d}.safetensors"
