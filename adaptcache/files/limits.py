"""What a file from a stranger may hold: sizes, depths and counts, checked before anything is built."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = [
    "GEARS", "KERNEL_STEPS", "PROMPTS", "STEPS", "TRACKS",
    "checked_name", "falling", "parse_json", "plain", "read_bytes",
]  # fmt: skip

STEPS = 1024  # of a grid
KERNEL_STEPS = 256  # of a kernel: its size is their square, and planning takes their cube
GEARS, TRACKS, PROMPTS = 16, 8, 4096
NAME, TEXT = 200, 10_000  # characters
DEPTH, VALUES = 12, 10_000  # of what is only kept: provenance, arguments of a call
DIGITS = 18  # of a whole number: longer ones fit no 64 bits, and very long ones take quadratic time


def read_bytes(path: str | Path, largest: int) -> bytes:
    """Reads a file of at most `largest` bytes, and never more of a larger one.

    Raises:
        OSError: It cannot be read, or is no regular file (a pipe would be waited for).
        ValueError: It is larger.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise OSError(0, "not a regular file")
    with path.open("rb") as file:
        data = file.read(largest + 1)
    if len(data) > largest:
        raise ValueError(f"it has more than {largest:,} bytes")
    return data


def parse_json(data: bytes) -> Any:
    """Returns what strict JSON says: UTF-8, numbers that are finite, whole numbers of 64 bits.

    Raises:
        ValueError: It is not that; whatever is wrong with it.
    """
    try:
        text = data.decode("utf-8")
        value = json.loads(text, parse_constant=_no_number, parse_int=_whole)
        if "\\ud" in text or "\\uD" in text:  # half of a surrogate pair can be read and never written
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return value


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no JSON number")


def _whole(text: str) -> int:
    if len(text) > DIGITS + 1:
        raise ValueError(f"a whole number has {len(text)} digits")
    return int(text)


def plain(value: Any) -> Any:
    """Returns a value that is only kept, if it is small and plain: texts, numbers, lists and tables.

    Raises:
        ValueError: It holds something else, a number that is not finite, or too much.
    """
    left = VALUES
    waiting = [(value, 0)]
    while waiting:
        item, depth = waiting.pop()
        left -= 1
        if left < 0 or depth > DEPTH:
            raise ValueError(f"it holds more than {VALUES:,} values, or more than {DEPTH} levels of them")
        if isinstance(item, dict):
            waiting += [(part, depth + 1) for part in itertools.islice(item.items(), left + 1)]
        elif isinstance(item, (list, tuple)):
            waiting += [(part, depth + 1) for part in itertools.islice(item, left + 1)]
        else:
            _check_leaf(item)
    return value


def _check_leaf(item: Any) -> None:
    if not (item is None or isinstance(item, (str, bool, int, float))):
        raise ValueError(f"it holds a {type(item).__name__}; texts, numbers, lists and tables are plain")
    if isinstance(item, float) and not math.isfinite(item):
        raise ValueError(f"{item} is not a finite number")
    if isinstance(item, int) and item.bit_length() > 64:
        raise ValueError("a whole number has more than 64 bits")
    if isinstance(item, str) and len(item) > TEXT:
        raise ValueError(f"a text has more than {TEXT:,} characters")


def falling(times: Sequence[float]) -> Sequence[float]:
    """Returns times, if they fall."""
    if any(b >= a for a, b in itertools.pairwise(times)):
        raise ValueError("the times must fall")
    return times


def checked_name(name: str) -> str:
    """Returns a name, if it can be shown in a line and be part of a file's name.

    Raises:
        ValueError: It is empty, long, has control characters or separates folders.
    """
    if not name or len(name) > NAME or not name.isprintable() or set(name) & set("/\\") or name[0] == ".":
        raise ValueError(f"{name[:40]!r} is no name: use at most {NAME} printable characters and no slashes")
    return name
