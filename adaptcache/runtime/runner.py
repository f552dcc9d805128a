"""Follows a schedule through the runs of a pipeline: the deciding visitor.

The file is longer than ours are: what happens in one run, from `begin` to `end`, is read in one place.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from torch import Tensor

from ..engines.diffusers.compatibility import graded, graded_call
from ..engines.diffusers.gate import Gate
from ..errors import AttachError, ScheduleError
from ..forecasts.history import History
from ..hooks import Update
from ..policies.base import Account
from ..schedule.findings import Grade, explain_findings, worst_grade
from ..schedule.format import same_grid
from ..schedule.gears import resolve_gear
from ..schedule.replan import replan
from ..schedule.rule import Rule
from ..schedule.schedule import Schedule
from ..sites import SiteHook, check_compiled, find_sites
from ..step import Step

__all__ = ["Runner", "runner_for"]

logger = logging.getLogger(__name__)
GRIDS = 32  # planned anew and kept: a server may see any number of sizes, each with steps of its own


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
        self.places: list[tuple[int, SiteHook]] = []  # inside of denoisers, with the number of the rule
        self.unmeasured, self.warned = False, set[str]()  # of the call under way; of all calls
        self.end()

    def follow(self, gear: int | None) -> None:
        """Follows one gear from the next run on, or the one that is chosen on the way."""
        self.schedule, self.gear = resolve_gear(self.original, gear, self.guard)
        self.account = Account(self.gear)
        self.rules: dict[tuple[float, ...], Rule] = {}  # by grid: planned anew once, not at every run

    def stand(self, gate: Gate) -> ExitStack:
        """Stands at the sites inside of the denoisers, if the schedule has any, until that is closed."""
        with ExitStack() as undo:
            undo.callback(self.places.clear)
            if self.schedule.rules[0].site != "step":
                self.places[:] = find_sites(self.schedule.rules, gate)
                for _, place in self.places:
                    place.install(undo)
            return undo.pop_all()

    def called(self, pipe: Any, arguments: Mapping[str, Any]) -> None:
        """A run is asked for: warns once of what nobody measured, or refuses it."""
        found = graded_call(self.schedule, pipe, arguments)
        if found and self.strict:
            raise ScheduleError(explain_findings(self.schedule, found))
        self.unmeasured = bool(found)
        for finding in found:
            if finding.what not in self.warned:
                self.warned.add(finding.what)
                warnings.warn(explain_findings(self.schedule, [finding]), stacklevel=5)

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
            check_compiled(place)
            place.on_run_start(self.schedule.rules[number] if number else self.rule, times, self.gear)

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
        anew = replan(self.schedule, times)
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
        self.history.record(update.track, update, self.x)
        gear = self.rule.policy.gear(self.state, self.gear)
        step = replace(update.step, gear=gear, track=update.track, x=self.x)
        if not update.computed:
            return self.rule.forecast.combine(self.history.known(update.track, update.x, self.x), step)
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
            place.on_run_end()

    def sites(self) -> dict[str, tuple[int, ...]]:
        """Returns the steps at which each site inside of the denoisers was computed."""
        made: dict[str, tuple[int, ...]] = {}
        names = [rule.site for rule in self.schedule.rules]
        for number, place in self.places:
            rule = self.schedule.rules[number]
            if not place.decision.made:  # this run had no such calls
                continue
            name = f"{rule.site} {rule.span}" if names.count(rule.site) > 1 else rule.site
            steps = {i for i, flag in enumerate(place.decision.made) if flag}
            made[name] = tuple(sorted(steps.union(made.get(name, ()))))
        return made


def runner_for(
    pipe: Any, schedule: Schedule, strict: bool = False, gear: int | None = None, guard: bool = False
) -> Runner:
    """Returns the visitor that follows a schedule, after checking that it fits the pipeline; see `attach`."""
    runner = Runner(schedule, strict, gear, guard)
    found = graded(schedule, pipe)
    grade = worst_grade(found)
    if grade == Grade.REFUSED or (strict and grade == Grade.WARNED):
        raise ScheduleError(explain_findings(schedule, found))
    if grade == Grade.WARNED:
        warnings.warn(explain_findings(schedule, found), stacklevel=3)
    elif found:
        logger.info(explain_findings(schedule, found))
    runner.warned |= {finding.what for finding in found}
    return runner
