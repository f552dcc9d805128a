"""What is done of a profile: each batch and each step's influence is on disk as soon as it is measured."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from ..files import write_atomically
from .record import Trajectory

__all__ = ["Parts"]

Rows = list[dict[str, np.ndarray]]


class Parts:
    """The finished parts of one profile, in a folder. Files that are not whole are measured again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

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

    def runs(self, prompts: int) -> list[Trajectory] | None:
        """Returns the trajectories of all batches, or None where some of the prompts' are missing."""
        runs: list[Trajectory] = []
        while prompts > 0 and (found := self.load(len(runs))):
            runs.append(found[0])
            prompts -= len(found[1])
        return runs if prompts == 0 else None

    def load_influence(self, steps: int) -> list[float]:
        """Returns the influence of the first steps, as far as it was measured; at most of N steps."""
        try:
            values = json.loads((self.folder / "influence.json").read_text())
            known = [float(value) for value in values]
        except (OSError, ValueError, TypeError):
            return [0.0]
        return known[:steps] if known and all(map(math.isfinite, known)) else [0.0]

    def save_influence(self, values: list[float]) -> None:
        """Keeps the influence of the first steps, to the last bit."""
        write_atomically(self.folder / "influence.json", json.dumps(values).encode())

    def _batch(self, number: int) -> Path:
        return self.folder / f"batch-{number:05d}.safetensors"
