"""What a file from a stranger may hold: sizes, depths and counts, checked before anything is built."""

import itertools
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from .files import locate

STEPS = 1024  # of a grid
KERNEL_STEPS = 256  # of a kernel: its size is their square, and planning takes their cube
GEARS, TRACKS, LOOPS, PROMPTS = 16, 8, 8, 4096
NAME, TEXT = 200, 10_000  # characters
DEPTH, VALUES = 12, 10_000  # of what is only kept: provenance, arguments of a call
NODES = 10_000  # lists, tables, texts and words: each can be an error of its own, numbers in a row are few
LONGEST, WIDEST = 4096, 256  # entries of a list, and of a table
SHOWN = 120  # characters of a value in a representation
DIGITS = 18  # of a whole number: longer ones fit no 64 bits, and very long ones take quadratic time


class Cut(str):
    """The beginning of a representation."""

    def __repr__(self) -> str:
        return f"{self[:SHOWN]}..."


class FrozenModel(BaseModel):
    """A model that stays as it is, knows its keys, and has a short representation, however long its tables are."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            text = repr(value)
            yield name, value if len(text) <= SHOWN else Cut(text)


def read_bytes(path: str | Path, largest: int) -> bytes:
    """Reads a file of at most `largest` bytes, and never more of a larger one.

    Raises:
        OSError: It cannot be read, or is no regular file (a pipe would be waited for).
        ValueError: It is larger.
    """
    path = locate(path)
    if path.exists() and not path.is_file():
        raise OSError(0, "not a regular file")
    with path.open("rb") as file:
        data = file.read(largest + 1)
    if len(data) > largest:
        raise ValueError(f"it has more than {largest:,} bytes")
    return data


def parse_json(data: bytes, nodes: int = NODES) -> Any:
    """Returns what strict JSON says: UTF-8, numbers that are finite, whole numbers of 64 bits, each name once.

    What is checked before it is parsed, or right after, bounds what a stranger's file can cost: collecting
    garbage among millions of lists, or a complaint about each of their entries.

    Raises:
        ValueError: It is not that, or holds more lists, tables, texts and words than `nodes`.
    """
    marks = data.count(b"[") + data.count(b"{") + data.count(b'"') // 2
    if marks + sum(data.count(word) for word in (b"true", b"false", b"null")) > nodes:
        raise ValueError(f"it holds more than {nodes:,} lists, tables, texts and words")
    try:
        text = data.decode("utf-8-sig")  # some editors begin with a byte order mark
        value = json.loads(text, parse_constant=_no_number, parse_int=_whole, object_pairs_hook=_table)
        if "\\ud" in text or "\\uD" in text:  # half of a surrogate pair can be read and never written
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    _check_sizes(value)
    return value


def _check_sizes(value: Any) -> None:
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if not isinstance(item, (dict, list)):
            continue
        if len(item) > (WIDEST if isinstance(item, dict) else LONGEST):
            raise ValueError(f"a list has more than {LONGEST:,} entries, or a table more than {WIDEST}")
        parts = item.values() if isinstance(item, dict) else item
        waiting += [part for part in parts if isinstance(part, (dict, list))]


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no JSON number")


def _table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for name, value in pairs:
        if name in table:
            raise ValueError(f"it says {name[:40]!r} twice")
        table[name] = value
    return table


def _whole(text: str) -> int:
    if len(text) > DIGITS + 1:
        raise ValueError(f"a whole number has {len(text)} digits")
    return int(text)


def check_plain(value: Any) -> Any:
    """Returns a value that is only kept, if it is small and plain, of finite numbers; `ValueError` for others."""
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


def check_falling(times: Sequence[float]) -> Sequence[float]:
    """Returns times, if they fall."""
    if any(b >= a for a, b in itertools.pairwise(times)):
        raise ValueError("the times must fall")
    return times


def check_name(name: str) -> str:
    """Returns a name, if it can be shown in a line and be part of a file's name; `ValueError` for others."""
    text = name if isinstance(name, str) else ""
    if not text or len(text) > NAME or not text.isprintable() or set(text) & set("/\\") or text[0] == ".":
        raise ValueError(f"{name!r:.40} is no name: use at most {NAME} printable characters and no slashes")
    return name


def first_fault(error: ValidationError, whole: str = "") -> str:
    """Returns what is wrong first with the content of a file: where (`whole` for all of it), and what."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(map(str, first["loc"])) or whole
    return f"{where[:200]}: {first['msg'][:500]}"
