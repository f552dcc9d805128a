"""Mutations: of bytes, of numbers, of JSON trees, and of the headers of safetensors files."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from typing import Any

NUMBERS = [
    "0", "-1", "1e999", "-1e400", "NaN", "Infinity", "1" * 30, "1" * 5000, "1e-320", "0.5", "4097", "1.0",
]  # fmt: skip
TEXTS = [
    "", "../../x", "/dev/zero", "\x1b[2J", "[/]", "x" * 5000, "$(id)", "\ud800", "\0", "__import__('os')",
]  # fmt: skip
TOKENS = [
    b"[" * 300, b"{" * 5000, b'{"a":' * 3000, b"]", b"}", b",", b'"', b"\\ud800", b"\xff\xfe", b"\0",
    b"[held-out]\n", b"[calibration]\n", b"\n" * 30_000, b"a.b." * 800 + b"c = 1\n", b"inf", b"nan",
    b"x = 1979-05-27T07:32:00Z\n", b"!!python/object/apply:os.system", b"\xef\xbb\xbf", b"[[x]]\n",
    b"word " * 4000, b"[]," * 50_000,
]  # fmt: skip


def value(rng: random.Random) -> Any:
    """Returns something that may not be meant where it is put."""
    deep: Any = 0
    for _ in range(rng.choice([1, 20, 300])):
        deep = [deep] if rng.random() < 0.5 else {"a": deep}
    odd = [
        None, True, -1, 0, 2**70, 0.5, 1e308, -1e-308, [], {}, deep, [0.5] * 5000, [[]] * 2000,
        {"type": "plan"},
    ]  # fmt: skip
    return rng.choice([*odd, *TEXTS])


def tree(data: Any, rng: random.Random) -> Any:
    """Replaces, removes or doubles one node of a JSON tree, in place."""
    spots: list[tuple[Any, Any]] = []
    waiting = [data]
    while waiting:
        node = waiting.pop()
        if isinstance(node, (dict, list)):
            keys = list(node) if isinstance(node, dict) else range(len(node))
            spots += [(node, key) for key in keys]
            waiting += [node[key] for key in keys]
    if not spots:
        return data
    node, key = rng.choice(spots)
    how = rng.randrange(4)
    if how == 0:
        del node[key]
    elif how == 1 and isinstance(node, list):
        node.extend(node[key : key + 1] * rng.choice([1, 300]))
    elif how == 2 and isinstance(node, dict):
        node[rng.choice(TEXTS)] = value(rng)
    else:
        node[key] = value(rng)
    return data


def in_json(content: bytes, rng: random.Random) -> bytes:
    """Mutates JSON as a tree, where it is JSON."""
    try:
        return json.dumps(tree(json.loads(content), rng)).encode()
    except (ValueError, RecursionError):
        return in_bytes(content, rng)


def in_header(content: bytes, rng: random.Random) -> bytes:
    """Mutates the header of a safetensors file, or its length, or its data."""
    length = int.from_bytes(content[:8], "little")
    if rng.random() < 0.2 or length > len(content):
        return rng.choice([rng.randbytes(8), (2**40).to_bytes(8, "little")]) + content[8:]
    if rng.random() < 0.2:
        at = 8 + length + 8 * rng.randrange(200)
        return content[:at] + rng.choice([b"\xff" * 8, b"\0" * 8, rng.randbytes(8)]) + content[at + 8 :]
    header = in_json(content[8 : 8 + length], rng)
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


def in_numbers(content: bytes, rng: random.Random) -> bytes:
    """Replaces one number in a text."""
    found = list(re.finditer(rb"-?\d+(\.\d+)?", content[:50_000]))
    if not found:
        return in_bytes(content, rng)
    spot = rng.choice(found)
    return content[: spot.start()] + rng.choice(NUMBERS).encode() + content[spot.end() :]


def in_bytes(content: bytes, rng: random.Random) -> bytes:
    """Flips, removes, doubles or inserts bytes."""
    a, b = sorted(rng.randrange(len(content) + 1) for _ in range(2))
    how = rng.randrange(5)
    if how == 0:
        return content[:a] + rng.randbytes(rng.choice([1, 4, 64])) + content[a + 1 :]
    if how == 1:
        return content[:a] + content[b:]
    if how == 2:
        return content[:b] + content[a:]
    if how == 3:
        return content[:a] + rng.choice(TOKENS) + content[a:]
    return content[:a]


MUTATIONS: dict[str, list[Callable[[bytes, random.Random], bytes]]] = {
    "schedule": [in_json, in_json, in_numbers, in_bytes],
    "settings": [in_json, in_numbers, in_bytes],
    "profile": [in_header, in_header, in_bytes],
    "preset": [in_numbers, in_bytes, in_bytes],
    "prompts": [in_bytes],
}


def mutated(kind: str, content: bytes, rng: random.Random) -> bytes:
    """Returns the content after one to three mutations."""
    for _ in range(rng.choice([1, 1, 2, 3])):
        content = rng.choice(MUTATIONS[kind])(content, rng)
    return content
