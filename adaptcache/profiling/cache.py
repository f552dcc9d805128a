"""What is done of a profile: each batch and each step's influence is on disk as soon as it is measured."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save as save_arrays
from safetensors.torch import load_file, save
from torch import nn

from ..engines.diffusers.identity import weights_hash
from ..files import write_atomically
from ..profile import Profile
from ..runs import Call
from .reference import Trajectory

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


# What full runs gave, kept on disk by content: a second target costs seconds, not another profile.

LAYOUT = 4  # raise it when what is stored changes


def content_key(pipe: Any, call: Call, *more: Any) -> str:
    """Returns a digest of all that full runs depend on: weights, scheduler, call, and what else is given."""
    modules = {
        n: weights_hash([part]) for n, part in sorted(pipe.components.items()) if isinstance(part, nn.Module)
    }
    # Names with an underscore are notes of diffusers', one of them in an order that changes by process.
    settings = sorted(item for item in pipe.scheduler.config.items() if not item[0].startswith("_"))
    scheduler = [type(pipe.scheduler).__name__, settings]
    parts = [
        LAYOUT,
        torch.__version__,
        type(pipe).__name__,
        modules,
        scheduler,
        call.steps,
        call.arguments,
        call.seed,
    ]
    digest = hashlib.sha256()
    feed(digest, [*parts, str(pipe.dtype), *more])
    return digest.hexdigest()[:24]


def feed(digest: Any, value: Any) -> None:
    """Adds a value of any kind to a digest: tensors and images by content, collections by their parts."""
    if isinstance(value, Mapping):
        value = sorted(value.items())
    if isinstance(value, (list, tuple)):
        digest.update(f"[{len(value)}".encode())
        for item in value:
            feed(digest, item)
    elif isinstance(value, torch.Tensor):
        digest.update(str(value.shape).encode() + value.detach().cpu().float().numpy().tobytes())
    elif hasattr(value, "tobytes"):  # numpy arrays and PIL images
        digest.update(value.tobytes())
    else:
        digest.update(f"{type(value).__name__}:{value!r};".encode())


class Store:
    """A folder with one folder for each content key."""

    def __init__(self, folder: str | Path | None = None) -> None:
        home = os.environ.get("ADAPTCACHE_HOME") or Path.home() / ".cache" / "adaptcache"
        self.folder = Path(folder or home)

    def parts(self, key: str, rank: int = 0) -> Parts:
        """Returns what is done of the profile of a key, to be added to by a rank."""
        return Parts(self.folder / key, rank)

    def load_profile(self, key: str) -> Profile | None:
        """Returns the profile of a key, or None."""
        try:
            return Profile.load(self.folder / key / "profile.safetensors")
        except ValueError:
            return None  # not there, or not whole: it is measured again

    def save_profile(self, key: str, profile: Profile) -> None:
        """Keeps the profile that the parts of a key add up to."""
        profile.save(self.folder / key / "profile.safetensors")

    def load_images(self, key: str, number: int = 0) -> list[np.ndarray] | None:
        """Returns the decoded outputs of a batch, or None."""
        try:
            arrays = load_arrays(self.folder / key / f"images-{number:05d}.safetensors")
        except (OSError, SafetensorError):
            return None
        return [arrays[name] for name in sorted(arrays)]

    def save_images(self, key: str, images: Sequence[np.ndarray], number: int = 0) -> None:
        """Keeps the decoded outputs of a batch."""
        # Contiguous, as safetensors writes the memory and not the values.
        arrays = {f"{k:05d}": np.ascontiguousarray(image) for k, image in enumerate(images)}
        write_atomically(self.folder / key / f"images-{number:05d}.safetensors", save_arrays(arrays))


def described(value: Any) -> Any:
    """Returns a value as JSON can hold it, for the provenance of a schedule."""
    try:
        json.dumps(value)
    except TypeError:
        return str(value)[:200]
    return value
