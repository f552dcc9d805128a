"""Runs functions as if in parallel: one at a time, each until the next meeting, where all wait for all.

Trajectory matching has to solve for a step's weights with every prompt's latents at that step before
any prompt goes on. Pipelines cannot be stopped in the middle of `__call__`, but threads can.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Generic, TypeVar

import torch

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
        state = ThreadState()
        with ThreadPoolExecutor(len(functions)) as pool:
            futures = [
                pool.submit(contextvars.copy_context().run, self._member, function, state) for function in functions
            ]
            try:
                errors = [future.exception() for future in futures]
            except BaseException:  # interrupted from the keyboard: let the members go
                self._barrier.abort()
                raise
        causes = [error for error in errors if error is not None]
        for error in sorted(causes, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
            raise error

    def _member(self, function: Callable[[], None], state: ThreadState) -> None:
        with self._turn:
            try:
                with state.enter():
                    function()
            except BaseException:
                self._barrier.abort()
                raise

    def _decide(self) -> None:
        self._answer = self._solve(self._given)  # type: ignore[arg-type]


class ThreadState:
    """What torch keeps for each thread, as it is where this is made: threads do not inherit it."""

    def __init__(self) -> None:
        self.inference, self.grad = torch.is_inference_mode_enabled(), torch.is_grad_enabled()
        self.default = torch.get_default_device()
        kinds = ["cpu"]
        self.device: int | None = None
        if torch.accelerator.is_available():
            kinds.append(torch.accelerator.current_accelerator().type)  # type: ignore[union-attr]
            self.device = torch.accelerator.current_device_index()
        self.autocast = [(kind, torch.get_autocast_dtype(kind)) for kind in kinds if torch.is_autocast_enabled(kind)]

    def enter(self) -> ExitStack:
        """Sets it in the thread of the caller, until the stack is closed."""
        with ExitStack() as undo:
            undo.enter_context(torch.inference_mode(self.inference))
            undo.enter_context(torch.set_grad_enabled(self.grad))
            for kind, dtype in self.autocast:
                undo.enter_context(torch.autocast(kind, dtype))
            if self.default != torch.get_default_device():
                undo.enter_context(self.default)
            if self.device is not None:
                torch.accelerator.set_device_index(self.device)
            return undo.pop_all()
