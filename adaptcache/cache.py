"""What full runs gave, kept on disk by content: a second target costs seconds, not another profile."""

from __future__ import annotations

import functools
import hashlib
import os
import types
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .files import check_writable, locate, write_atomically


class Cache:
    """A folder with one folder for each content key; None takes ADAPTCACHE_HOME, or `~/.cache/adaptcache`."""

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = locate(folder or os.environ.get("ADAPTCACHE_HOME") or "~/.cache/adaptcache")

    def check_writable(self) -> None:
        """Raises an `OSError` at once where nothing can be kept: a profile that is lost is work that is lost."""
        try:
            check_writable(self.folder / "profile")
        except OSError as error:
            raise type(error)(
                f"{error}; set ADAPTCACHE_HOME to a folder that can be written, or name one (cache_dir)"
            ) from None

    def load(self, key: str, name: str) -> dict[str, Tensor] | None:
        """Returns the tensors of a file; None where it is missing, broken or another's: then it is made again."""
        path = self.folder / key / f"{name}.safetensors"
        with suppress(OSError, SafetensorError):
            if path.is_file():  # a pipe would be waited for
                with safe_open(path, "pt") as file:
                    if (file.metadata() or {}).get("of") in (None, f"{key}/{name}"):  # None: of an older version
                        return {one: file.get_tensor(one) for one in file.keys()}
        return None

    def save(self, key: str, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Writes the tensors of a file, whole or not at all."""
        write_atomically(self.folder / key / f"{name}.safetensors", save(dict(tensors), {"of": f"{key}/{name}"}))


NAMED = (
    type, torch.dtype, torch.device, torch.Size, types.BuiltinFunctionType, types.MethodDescriptorType,
)  # fmt: skip
PLAIN = (bool, int, float, complex, str, bytes, Path, type(None))


def feed(digest: hashlib._Hash, value: Any, within: tuple[int, ...] = ()) -> None:
    """Adds a value to a digest by its content, whatever its kind: never by an address.

    Arguments:
        digest: What it is added to.
        value: Plain values, tensors, arrays, images, functions, objects; and lists and mappings of them.
        within: The ids of the objects it is a part of: those that hold themselves end there.

    Raises:
        TypeError: The value has no content that could be read.
    """
    if id(value) in within:
        digest.update(f"^{len(within) - within.index(id(value))}".encode())
        return
    within = (*within, id(value))
    for kind, parts in _contents(value):
        digest.update(f"{kind}:".encode())
        if isinstance(parts, bytes):
            digest.update(parts)
        else:
            digest.update(f"[{len(parts)}".encode())
            for part in parts:
                feed(digest, part, within)


def _contents(value: Any) -> list[tuple[str, bytes | list[Any]]]:
    """Returns what a value consists of: bytes, or values of which each is fed by itself."""
    kind = type(value).__qualname__
    if isinstance(value, Tensor):
        flat = value.detach().cpu().contiguous().reshape(-1)
        return [(f"{value.dtype}{tuple(value.shape)}", flat.view(torch.uint8).numpy().tobytes())]
    if isinstance(value, PLAIN):
        return [(kind, f"{value!r};".encode())]
    if isinstance(value, np.ndarray) and value.dtype.hasobject:  # its bytes are addresses
        return [(f"array{value.shape}", value.tolist())]
    if hasattr(value, "tobytes"):  # arrays and PIL images
        about = [getattr(value, name, None) for name in ("shape", "size", "mode", "dtype")]
        palette = value.getpalette() if hasattr(value, "getpalette") else None
        return [(f"{kind}{about}{palette}", value.tobytes())]
    if isinstance(value, NAMED):
        return [("name", f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', value)};".encode())]
    if isinstance(value, Mapping):
        items = sorted(value.items(), key=lambda item: str(item[0]))
        return [(kind, [part for item in items for part in item])]
    if isinstance(value, (set, frozenset)):
        return [(kind, sorted(value, key=repr))]
    if isinstance(value, (list, tuple)):
        return [(kind, list(value))]
    if isinstance(value, types.FunctionType):  # lambdas of one name differ by what they do and hold
        code, cells = value.__code__, [cell.cell_contents for cell in value.__closure__ or ()]
        constants = [one for one in code.co_consts if isinstance(one, PLAIN)]
        holds = [value.__defaults__, value.__kwdefaults__, constants, code.co_names, cells]
        return [(f"{value.__module__}.{value.__qualname__}", code.co_code), ("holds", holds)]
    if isinstance(value, types.MethodType):
        return [(kind, [value.__func__, value.__self__])]
    if isinstance(value, functools.partial):
        return [(kind, [value.func, value.args, value.keywords])]
    if is_dataclass(value):
        return [(kind, [(field.name, getattr(value, field.name)) for field in fields(value)])]
    if hasattr(value, "__dict__"):
        parts = [(name, vars(value)[name]) for name in sorted(vars(value)) if not name.startswith("__")]
        return [(kind, parts)]
    raise TypeError(
        f"a {type(value).__name__} among the arguments has no content that can be compared: give plain values, "
        "tensors, arrays or images"
    )
