"""What full runs gave, kept on disk by content: a second target costs seconds, not another profile."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from .files import write_atomically

__all__ = ["Cache", "feed"]


class Cache:
    """A folder with one folder for each content key.

    Arguments:
        folder: Where it is; None takes ADAPTCACHE_HOME, or `~/.cache/adaptcache`.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        home = os.environ.get("ADAPTCACHE_HOME") or Path.home() / ".cache" / "adaptcache"
        self.folder = Path(folder or home).expanduser()

    def load(self, key: str, name: str) -> dict[str, Tensor] | None:
        """Returns the tensors of a file; None where it is missing or broken, so that it is made again."""
        try:
            return load_file(self.folder / key / f"{name}.safetensors")
        except (OSError, SafetensorError):
            return None

    def save(self, key: str, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Writes the tensors of a file, whole or not at all."""
        write_atomically(self.folder / key / f"{name}.safetensors", save(dict(tensors)))


def feed(digest: hashlib._Hash, value: Any) -> None:
    """Adds a value to a digest by its content, whatever its kind: never by an address.

    Raises:
        TypeError: The value has no content that could be read.
    """
    if is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, Mapping):
        value = sorted(value.items(), key=lambda item: str(item[0]))
    if isinstance(value, (set, frozenset)):
        value = sorted(value, key=repr)
    if isinstance(value, (list, tuple)):
        digest.update(f"[{len(value)}".encode())
        for item in value:
            feed(digest, item)
    elif isinstance(value, Tensor):
        digest.update(f"{value.shape}{value.dtype}".encode())
        digest.update(value.detach().cpu().float().contiguous().numpy().tobytes())
    elif isinstance(value, np.ndarray) or hasattr(value, "tobytes"):  # arrays and PIL images
        about = (getattr(value, "shape", None), getattr(value, "size", None), getattr(value, "mode", None))
        digest.update(f"{type(value).__name__}{about}".encode())
        digest.update(value.tobytes())
    elif value is None or isinstance(value, (bool, int, float, complex, str, bytes, Path)):
        digest.update(f"{type(value).__name__}:{value!r};".encode())
    elif isinstance(value, (torch.dtype, torch.device, torch.Size, type)) or callable(value):
        # Functions and classes count by their names: their addresses change from process to process.
        digest.update(f"{type(value).__name__}:{getattr(value, '__qualname__', value)};".encode())
    elif hasattr(value, "__dict__"):
        digest.update(type(value).__qualname__.encode())
        feed(digest, {name: part for name, part in vars(value).items() if not name.startswith("__")})
    else:
        raise TypeError(
            f"a {type(value).__name__} among the arguments has no content that can be compared: give plain "
            "values, tensors, arrays or images"
        )
