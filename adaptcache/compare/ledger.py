"""Counts what fitting costs, by the stage that progress is reported of."""

from __future__ import annotations

import re
from collections import defaultdict
from types import TracebackType
from typing import Any, Self

from .work import BlockCounter

__all__ = ["Ledger"]


class Ledger:
    """Counts the work of a pipeline while it is entered, stage by stage.

    Arguments:
        pipe: A diffusers pipeline; copies of it that share its weights count too.
        progress: Who else is told of progress.
    """

    def __init__(self, pipe: Any, progress: Any) -> None:
        self.pipe, self.told = pipe, progress
        self.work: dict[str, float] = defaultdict(float)

    def __enter__(self) -> Self:
        self.counter, self.entered = BlockCounter(self.pipe).__enter__(), 0.0
        return self

    def progress(self, stage: str, done: int, of: int) -> None:
        """Books the work since the last report; "matching 7 calls" is booked as matching."""
        self.work[re.sub(r" \d+ calls$", "", stage)] += self.counter.work - self.entered
        self.entered = self.counter.work
        self.told(stage, done, of)

    def __exit__(self, kind: type[BaseException] | None, error: Any, trace: TracebackType | None) -> None:
        if self.work and self.counter.work > self.entered:  # what came after the last report
            last = list(self.work)[-1]
            self.work[last] += self.counter.work - self.entered
        self.counter.__exit__(kind, error, trace)
