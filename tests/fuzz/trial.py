"""Reads mutated files, and measures what that costs."""

from __future__ import annotations

import random
import resource
import time
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.artifacts import Kind
from tests.fuzz.mutate import mutated


@dataclass
class Outcome:
    """What became of the inputs of one kind.

    Arguments:
        inputs: How many were read.
        loaded: How many gave an object.
        refused: How many raised the documented error.
        worst: Milliseconds of processor time of the slowest.
        peak: Megabytes the process grew by while all were read: no input took more.
        escaped: The first inputs that raised anything else, with the error.
    """

    inputs: int = 0
    loaded: int = 0
    refused: int = 0
    worst: float = 0.0
    peak: float = 0.0
    escaped: list[tuple[bytes, str]] | None = None


def trial(name: str, kind: Kind, count: int, folder: Path, seed: int = 0) -> Outcome:
    """Reads `count` mutations of the real files of a kind."""
    rng, outcome, path = random.Random(seed), Outcome(escaped=[]), folder / f"input{kind.ending}"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(count):
        content = mutated(name, rng.choice(kind.seeds), rng)
        path.write_bytes(content)
        since = time.thread_time()
        try:
            kind.read(path)
            outcome.loaded += 1
        except kind.refusal:
            outcome.refused += 1
        except Exception as error:  # exactly what must not happen
            assert outcome.escaped is not None
            outcome.escaped.append((content, f"{type(error).__name__}: {error}"))
        outcome.worst = max(outcome.worst, 1000 * (time.thread_time() - since))
        outcome.inputs += 1
    outcome.peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return outcome
