"""Attaches a schedule to a pipeline: the handle, and what it can tell."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from types import TracebackType
from typing import Any, Self

from ...errors import AttachError
from ...runtime.report import Report
from ...runtime.runner import Runner, runner_for
from ...schedule.schedule import Schedule
from .gate import Gate

__all__ = ["Handle", "attach"]


class Handle:
    """An attached schedule: a context manager, with `report()`, `gear` and `close()`."""

    def __init__(self, pipe: Any, runner: Runner) -> None:
        self._runner = runner
        with ExitStack() as undo:
            self._gate = Gate(pipe, runner, partial(runner.called, pipe)).open()
            undo.callback(self._gate.close)
            undo.push(runner.stand(self._gate))
            self._undo = undo.pop_all()

    @property
    def gear(self) -> int:
        """Which plan the last run followed. May be set between runs; None lets the schedule choose."""
        return self._runner.account.gear

    @gear.setter
    def gear(self, gear: int | None) -> None:
        if self._gate.run is not None:
            raise AttachError("a run is going on, with weights of its own gear: set another one between runs")
        self._runner.follow(gear)

    def report(self) -> Report:
        """Returns what the last run did."""
        run = self._gate.run
        calls = run.calls if run is not None else self._gate.calls
        account, sites = self._runner.account, self._runner.sites()
        return Report(tuple(map(tuple, calls)), self._runner.evidence, account.gear, account.why(), sites)

    def close(self) -> None:
        """Takes the schedule off the pipeline and leaves nothing behind. Safe to call twice."""
        self._undo.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.close()


def attach(
    pipe: Any, schedule: Schedule, *, strict: bool = False, gear: int | None = None, guard: bool = False
) -> Handle:
    """Runs a pipeline by a schedule until the returned handle is closed.

    Arguments:
        pipe: A diffusers pipeline with a scheduler and a transformer or unet.
        schedule: What `adaptcache.calibrate` or `Schedule.load` returned.
        strict: Refuse grids the schedule was not fitted on, and other weights, where it would warn.
        gear: Which plan to follow, from the fastest (0). None leaves it to schedules that choose one for
            each prompt, and is the fastest of others.
        guard: Compare what is seen at computed steps with what calibration saw. Where it differs (other
            weights, another kind of prompt), the run shifts to a slower gear, or computes everything.

    Returns:
        A handle that is a context manager.

    Raises:
        ScheduleError: The schedule was fitted on another denoiser class, or has nothing for the guard.
        LookupError: It has no such gear.
        AttachError: The pipeline cannot be watched, or is already.

    Example:
        >>> with adaptcache.attach(pipe, Schedule.load("flux.json")) as handle:
        ...     image = pipe("a lighthouse in a storm").images[0]
        >>> print(handle.report())
    """
    return Handle(pipe, runner_for(pipe, schedule, strict, gear, guard))
