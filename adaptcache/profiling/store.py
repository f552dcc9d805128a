"""What full runs gave, kept on disk by content: a second target costs seconds, not another profile."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save as save_arrays
from torch import nn

from ..call import Call
from ..files import write_atomically
from ..provenance.fingerprint import weights_hash
from .parts import Parts
from .profile import Profile

__all__ = ["Store", "content_key", "described", "feed"]

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
