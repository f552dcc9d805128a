"""Follows a schedule through the runs of a pipeline: the deciding hook."""

from __future__ import annotations

import warnings
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from torch import Tensor

from ..errors import AttachError, ScheduleError
from ..forecasts.history import History
from ..hooks import SchedulerStep, StepHook
from ..policies.base import Account
from ..schedule.format import same_grid
from ..schedule.gears import resolve_gear
from ..schedule.replan import replan
from ..schedule.rule import Rule
from ..schedule.schedule import Schedule
from ..sites import SiteHook, check_compiled, find_sites
from ..step import Step

__all__ = ["Runner"]

GRIDS = 32  # planned anew and kept: a server may see any number of sizes, each with steps of its own


class Runner(StepHook):
    """Follows the rule of a schedule; holds all state of a run.

    Arguments:
        schedule: What to follow.
        strict: Refuse grids it was not fitted on.
        gear: The gear to stay in; None leaves it to the policy.
        guard: Whether to compare innovations with their bands.
    """

    def __init__(
        self, schedule: Schedule, strict: bool = False, gear: int | None = None, guard: bool = False
    ) -> None:
        self.strict, self.guard = strict, guard
        self.measured = True  # whether the call under way is one that was calibrated
        self.evidence = "calibrated"
        self.state: Any = None
        self.original = schedule
        self.follow(gear)
        self.sites: list[tuple[int, SiteHook]] = []  # inside of denoisers, with the number of the rule
        self.on_run_end()

    def follow(self, gear: int | None) -> None:
        """Follows one gear from the next run on, or the one that is chosen on the way."""
        self.schedule, self.gear = resolve_gear(self.original, gear, self.guard)
        self.account = Account(self.gear)
        self.rules: dict[tuple[float, ...], Rule] = {}  # by grid: planned anew once, not at every run

    def install(self, gate: Any) -> ExitStack:
        with ExitStack() as undo:
            undo.callback(self.sites.clear)
            if self.schedule.rules[0].site != "step":
                self.sites[:] = find_sites(self.schedule.rules, gate)
                for _, site in self.sites:
                    site.install(undo)
            return undo.pop_all()

    def on_run_start(self, times: tuple[float, ...]) -> None:
        if times not in self.rules:
            if len(self.rules) >= GRIDS:
                del self.rules[next(iter(self.rules))]
            self.rules[times] = self._rule(times)
        fitted = "calibrated" if self.schedule.grid.times else "none"
        self.evidence = fitted if self._is_fitted(times) and self.measured else "extrapolated"
        self.rule = self.rules[times]
        self.state = self.rule.policy.init(times)
        self.history = History(self.rule.forecast.depth, self.rule.forecast.keeps_latents)
        for number, site in self.sites:
            check_compiled(site)
            site.on_run_start(self.schedule.rules[number] if number else self.rule, times, self.gear)

    def _is_fitted(self, times: tuple[float, ...]) -> bool:
        return not self.schedule.grid.times or same_grid(times, self.schedule.grid.times)

    def _rule(self, times: tuple[float, ...]) -> Rule:
        rule = self.schedule.rules[0]
        if self._is_fitted(times):
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

    def should_compute(self, step: Step) -> bool:
        if self.sites:
            return True  # the denoiser is called, and decides inside
        self.x = None
        if self.schedule.rules[0].signal != "none":
            if step.x is None:
                raise AttachError(
                    f"{self.schedule.name} looks at what enters the denoiser, and that is no tensor"
                )
            self.x = step.x.clone()  # policies compare it with that of later steps
        return step.index == 0 or self.rule.computes(self.state, replace(step, gear=self.gear, x=self.x))

    def model_output(self, step: SchedulerStep) -> Tensor:
        if self.sites:
            return step.u
        key = (step.track, step.view)
        self.history.record(key, step, self.x)
        gear = self.rule.policy.gear(self.state, self.gear)
        where = replace(step.step, gear=gear, track=step.track, x=self.x)
        if not step.computed:
            return self.rule.forecast.combine(self.history.known(key, step.x, self.x), where)
        if key == (0, 0):
            self.rule.policy.observe(self.state, where, step.u)
        return step.u

    def on_run_end(self) -> None:
        if self.state is not None:
            self.account = self.rule.policy.account(self.state, self.gear)
        self.history, self.state, self.x = History(0), None, None
        for _, site in self.sites:
            site.on_run_end()

    def site_steps(self) -> dict[str, tuple[int, ...]]:
        """Returns the steps at which each site inside of the denoisers was computed."""
        made: dict[str, tuple[int, ...]] = {}
        names = [rule.site for rule in self.schedule.rules]
        for number, site in self.sites:
            rule = self.schedule.rules[number]
            if not site.decision.made:  # this run had no such calls
                continue
            name = f"{rule.site} {rule.span}" if names.count(rule.site) > 1 else rule.site
            steps = {i for i, flag in enumerate(site.decision.made) if flag}
            made[name] = tuple(sorted(steps.union(made.get(name, ()))))
        return made
