"""Reads mutated files, and measures what that costs."""

from __future__ import annotations

import gc
import random
import resource
import time
from collections.abc import Callable
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
        slowest: That input.
        peak: Megabytes that the reading of one input needed, at most.
        escaped: The first inputs that raised anything else, with the error.
    """

    inputs: int = 0
    loaded: int = 0
    refused: int = 0
    worst: float = 0.0
    slowest: bytes = b""
    peak: float = 0.0
    escaped: list[tuple[bytes, str]] | None = None


def meter() -> Callable[[], float]:
    """Returns what tells the megabytes that the process needed since, at its peak.

    Linux can forget a process's peak, so that each input has its own. Elsewhere the peak of all inputs
    so far is told, which none of them exceeds.
    """
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
        before = _status("VmRSS")
        return lambda: _status("VmHWM") - before
    except OSError:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before


def _status(name: str) -> float:
    """Returns a size from the process's status, in megabytes."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name)) / 1024


def trial(name: str, kind: Kind, count: int, folder: Path, seed: int = 0) -> Outcome:
    """Reads `count` mutations of the real files of a kind.

    What the libraries hold is kept out of the garbage collector: to look through it takes longer than to
    read most inputs, and would be booked on whichever input comes by.
    """
    gc.collect()
    gc.freeze()
    rng, outcome, path = random.Random(seed), Outcome(escaped=[]), folder / f"input{kind.ending}"
    for _ in range(count):
        content = mutated(name, rng.choice(kind.seeds), rng)
        path.write_bytes(content)
        grown, since = meter(), time.thread_time()
        try:
            kind.read(path)
            outcome.loaded += 1
        except kind.refusal:
            outcome.refused += 1
        except Exception as error:  # exactly what must not happen
            assert outcome.escaped is not None
            outcome.escaped.append((content, f"{type(error).__name__}: {error}"))
        taken = 1000 * (time.thread_time() - since)
        if taken > outcome.worst:
            outcome.worst, outcome.slowest = taken, content
        outcome.peak = max(outcome.peak, grown())
        outcome.inputs += 1
    gc.unfreeze()
    return outcome
