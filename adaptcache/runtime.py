"""Runs a pipeline by a schedule: the deciding visitor."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from types import TracebackType
from typing import Any, Self

from torch import Tensor

from .clock import Step
from .drive import driven
from .errors import AttachError, ScheduleError
from .forecasts.history import History
from .gate import Gate, Update
from .policies.base import Account
from .provenance.compatibility import graded, graded_call
from .provenance.findings import Grade, explained, worst
from .replan import replanned, same_grid
from .schedule import Rule, Schedule
from .sites.places import Place, places_of, uncompiled

__all__ = ["Handle", "Report", "attach", "runner_for"]

logger = logging.getLogger(__name__)
GRIDS = 32  # planned anew and kept: a server may see any number of sizes, each with steps of its own


@dataclass(frozen=True)
class Report:
    """What the last run did.

    Arguments:
        calls: Denoiser calls, by step and branch: True where it was made, False where it was skipped.
        evidence: "calibrated" where it ran as it was measured, "extrapolated" where it was planned anew or
            ran at a guidance or size nobody measured, "none" where nothing was fitted.
        gear: Which plan of the schedule was followed, from the fastest (0); at the end, where it changed.
        why: How that came about, where it was chosen during the run.
        sites: The numbers of the steps at which each site inside of the denoiser was computed.
    """

    calls: tuple[tuple[bool, ...], ...]
    evidence: str
    gear: int = 0
    why: str = ""
    sites: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def made(self) -> int:
        """How many denoiser calls were made."""
        return sum(sum(branches) for branches in self.calls)

    @property
    def skipped(self) -> int:
        """How many denoiser calls were skipped."""
        return sum(len(branches) for branches in self.calls) - self.made

    @property
    def computed(self) -> list[int]:
        """The numbers of the steps at which the denoiser was called."""
        return [i for i, branches in enumerate(self.calls) if any(branches)]

    def __str__(self) -> str:
        strip = "".join("█" if any(branches) else "·" for branches in self.calls)
        lines = [f"{strip}  {self.made} denoiser calls made, {self.skipped} skipped ({self.evidence})"]
        lines[0] += f"; {self.why}" if self.why else ""
        for name, steps in self.sites.items():
            marks = "".join("█" if i in steps else "·" for i in range(len(self.calls)))
            lines.append(f"{marks}  {name}")
        return "\n".join(lines)


class Runner:
    """Follows the rule of a schedule; holds all state of a run."""

    def __init__(
        self, schedule: Schedule, strict: bool = False, gear: int | None = None, guard: bool = False
    ) -> None:
        self.strict, self.guard = strict, guard
        self.evidence = "calibrated"
        self.state: Any = None
        self.original = schedule
        self.follow(gear)
        self.places: list[tuple[int, Place]] = []  # inside of denoisers, with the number of the rule
        self.unmeasured, self.warned = False, set[str]()  # of the call under way; of all calls
        self.end()

    def follow(self, gear: int | None) -> None:
        """Follows one gear from the next run on, or the one that is chosen on the way."""
        self.schedule, self.gear = driven(self.original, gear, self.guard)
        self.account = Account(self.gear)
        self.rules: dict[tuple[float, ...], Rule] = {}  # by grid: planned anew once, not at every run

    def stand(self, gate: Gate) -> ExitStack:
        """Stands at the sites inside of the denoisers, if the schedule has any, until that is closed."""
        with ExitStack() as undo:
            undo.callback(self.places.clear)
            if self.schedule.rules[0].site != "step":
                self.places[:] = places_of(self.schedule.rules, gate)
                for _, place in self.places:
                    place.stand(undo)
            return undo.pop_all()

    def called(self, pipe: Any, arguments: Mapping[str, Any]) -> None:
        """A run is asked for: warns once of what nobody measured, or refuses it."""
        found = graded_call(self.schedule, pipe, arguments)
        if found and self.strict:
            raise ScheduleError(explained(self.schedule, found))
        self.unmeasured = bool(found)
        for finding in found:
            if finding.what not in self.warned:
                self.warned.add(finding.what)
                warnings.warn(explained(self.schedule, [finding]), stacklevel=5)

    def begin(self, times: tuple[float, ...]) -> None:
        if times not in self.rules:
            if len(self.rules) >= GRIDS:
                del self.rules[next(iter(self.rules))]
            self.rules[times] = self._rule(times)
        fitted = "calibrated" if self.schedule.grid.times else "none"
        own = self._native(times) and not self.unmeasured
        self.evidence = fitted if own else "extrapolated"
        self.rule = self.rules[times]
        self.state = self.rule.policy.init(times)
        self.history = History(self.rule.forecast.depth, self.rule.forecast.keeps_latents)
        for number, place in self.places:
            uncompiled(place)
            place.begin(self.schedule.rules[number] if number else self.rule, times, self.gear)

    def _native(self, times: tuple[float, ...]) -> bool:
        return not self.schedule.grid.times or same_grid(times, self.schedule.grid.times)

    def _rule(self, times: tuple[float, ...]) -> Rule:
        rule = self.schedule.rules[0]
        if self._native(times):
            return rule
        grid = f"{len(times)} steps from t = {times[0]:.3f} to {times[-1]:.3f}"
        fitted = f"{self.schedule.name} was fitted on {len(self.schedule.grid.times)} other steps"
        if self.strict:
            raise ScheduleError(
                f"{fitted}, this run has {grid}; calibrate for these, or attach with strict=False"
            )
        anew = replanned(self.schedule, times)
        how = "its rule is used as it is" if anew is rule else "planned anew"
        warnings.warn(f"{fitted}, this run has {grid}: {how}, evidence extrapolated", stacklevel=2)
        return anew

    def computes(self, step: Step) -> bool:
        if self.places:
            return True  # the denoiser is called, and decides inside
        self.x = None
        if self.schedule.rules[0].signal != "none":
            if step.x is None:
                raise AttachError(
                    f"{self.schedule.name} looks at what enters the denoiser, and that is no tensor"
                )
            self.x = step.x.clone()  # policies compare it with that of later steps
        step = replace(step, gear=self.gear, x=self.x)
        return step.index == 0 or self.rule.computes(self.state, step)

    def update(self, update: Update) -> Tensor:
        if self.places:
            return update.move.u
        self.history.see(update, self.x)
        gear = self.rule.policy.gear(self.state, self.gear)
        step = replace(update.step, gear=gear, track=update.track, x=self.x)
        if not update.computed:
            return self.rule.forecast.combine(self.history.known(update.track, update.move.x, self.x), step)
        if update.track == 0:
            self.rule.policy.observe(self.state, step, update.move.u)
        return update.move.u

    def landed(self, update: Update, y: Tensor) -> None:
        """Nothing to learn from at run time."""

    def end(self) -> None:
        if self.state is not None:
            self.account = self.rule.policy.account(self.state, self.gear)
        self.history, self.state, self.x = History(0), None, None
        for _, place in self.places:
            place.end()

    def sites(self) -> dict[str, tuple[int, ...]]:
        """Returns the steps at which each site inside of the denoisers was computed."""
        made: dict[str, tuple[int, ...]] = {}
        names = [rule.site for rule in self.schedule.rules]
        for number, place in self.places:
            rule = self.schedule.rules[number]
            if not place.course.made:  # this run had no such calls
                continue
            name = f"{rule.site} {rule.span}" if names.count(rule.site) > 1 else rule.site
            steps = {i for i, flag in enumerate(place.course.made) if flag}
            made[name] = tuple(sorted(steps.union(made.get(name, ()))))
        return made


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


def runner_for(
    pipe: Any, schedule: Schedule, strict: bool = False, gear: int | None = None, guard: bool = False
) -> Runner:
    """Returns the visitor that follows a schedule, after checking that it fits the pipeline; see `attach`."""
    runner = Runner(schedule, strict, gear, guard)
    found = graded(schedule, pipe)
    grade = worst(found)
    if grade == Grade.REFUSED or (strict and grade == Grade.WARNED):
        raise ScheduleError(explained(schedule, found))
    if grade == Grade.WARNED:
        warnings.warn(explained(schedule, found), stacklevel=3)
    elif found:
        logger.info(explained(schedule, found))
    runner.warned |= {finding.what for finding in found}
    return runner
