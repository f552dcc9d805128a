"""Runs functions as if in parallel: one at a time, each until the next meeting, where all wait for all.

Trajectory matching has to solve for a step's weights with every prompt's latents at that step before
any prompt goes on. Pipelines cannot be stopped in the middle of `__call__`, but threads can.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

__all__ = ["Lockstep"]

Given = TypeVar("Given")
Answer = TypeVar("Answer")


class Lockstep(Generic[Given, Answer]):
    """Lets members meet.

    Arguments:
        members: How many functions will run, each with as many meetings as the others.
        solve: Turns what all members gave at a meeting, in their order, into the answer all of them get.
    """

    def __init__(self, members: int, solve: Callable[[list[Given]], Answer]) -> None:
        self._solve = solve
        self._given: list[Given | None] = [None] * members
        self._answer: Answer
        self._turn = threading.Lock()  # held by the one member that runs
        self._barrier = threading.Barrier(members, action=self._decide)

    def meet(self, member: int, given: Given) -> Answer:
        """Waits for all members and returns the common answer. Called by a running member."""
        self._given[member] = given
        self._turn.release()
        try:
            self._barrier.wait()
        finally:
            self._turn.acquire()
        return self._answer

    def run(self, functions: Sequence[Callable[[], None]]) -> None:
        """Runs one function a member; the first error of any of them ends all, and is raised."""
        with ThreadPoolExecutor(len(functions)) as pool:
            futures = [pool.submit(self._member, function) for function in functions]
            try:
                errors = [future.exception() for future in futures]
            except BaseException:  # interrupted from the keyboard: let the members go
                self._barrier.abort()
                raise
        causes = [error for error in errors if error is not None]
        for error in sorted(causes, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
            raise error

    def _member(self, function: Callable[[], None]) -> None:
        with self._turn:
            try:
                function()
            except BaseException:
                self._barrier.abort()
                raise

    def _decide(self) -> None:
        self._answer = self._solve(self._given)  # type: ignore[arg-type]
