"""Follows a schedule through the runs of a pipeline: the deciding hook."""

import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..cache import Cache
from ..errors import AttachError, LoopError, ScheduleError
from ..forecasts.base import History
from ..forecasts.extrapolate import Extrapolate
from ..hooks import SchedulerStep, StepHook
from ..policies.base import Account
from ..policies.plan import Plan, SignalSpecs
from ..policies.signals import SignalSpec, compute_signals
from ..policies.uniform import Uniform
from ..schedule.format import same_grid, same_run
from ..schedule.instant import InstantRequest, check_speed, load_instant
from ..schedule.replan import replan
from ..schedule.rule import Rule
from ..schedule.schedule import Schedule
from ..sites import SiteHook, check_compiled, find_sites
from ..step import Step

# Prompts are unlike the calibration's where an innovation lies above its band, or where n of them lie on average
# BIAS + SINGLE / sqrt(n) standard deviations above its middle: a single run tells little, a handful tell.
BIAS, SINGLE = 0.3, 2.0
KEPT = 32  # grids planned anew, or instant schedules: a server may see any number of sizes, each with steps of its own


class Runner(StepHook):
    """Follows the rule of a schedule; holds all state of a run.

    Arguments:
        strict: Refuse grids it was not fitted on.
        gear: The gear to stay in; None leaves it to the policy.
        guard: Whether to compare innovations with their bands.
        read: Returns what theory needs of a run, from what the hook was installed on and a speed, when the run starts;
            for weights on other grids.
    """

    def __init__(
        self, schedule: Schedule, strict: bool = False, gear: int | None = None, guard: bool = False,
        read: Callable[[Any, float], InstantRequest] | None = None,
    ) -> None:  # fmt: skip
        self.strict, self.guard, self.read = strict, guard, read
        self.gate: Any = None
        self.evidence = "none"  # of the call under way, or of the last one
        self.followed = Account(0)  # likewise, which gear it is; `account` is that of the next one
        self.measured, self.loops = True, 0  # whether the call is one that was calibrated; loops it had so far
        self.bands: SignalSpecs | None = None  # of innovations, by gear and computed step after the first
        self.branches: Sequence[float] = ()  # of each step as calibrated, on the grid of this run
        self.deviations, self.prompts = torch.zeros(()), 0  # sum over the prompts since attach, and their number
        self.innovations: list[tuple[SignalSpec, Tensor]] = []  # of its computed steps, on the device
        self.on_full_grid = True  # whether a schedule with own times stands for the steps that it was fitted on
        self.state: Any = None
        self.end = 0  # how many steps of this run there were in those that were calibrated on
        self.x: Tensor | None = None  # what entered the denoiser at this step, where a policy looks at it
        self.original = schedule
        self.follows_views = schedule.rules[0].site == "step"  # sites inside tell branches apart only
        self.follow(gear)
        self.sites: list[tuple[int, SiteHook]] = []  # inside of denoisers, with the number of the rule
        self.on_run_end()

    def follow(self, gear: int | None) -> None:
        """Follows one gear from the next run on, or the one that is chosen on the way."""
        self.schedule, self.gear = self.original.resolve_gear(gear, self.guard)
        self.reads_input = self.follows_views and self.schedule.rules[0].signal != "none"
        self.reads_branches = self.schedule.rules[0].forecast.keeps_branches
        self.account = Account(self.gear)
        self.rules: dict[tuple[float, ...], Rule] = {}  # by grid: planned anew once, not at every run

    @property
    def own_times(self) -> tuple[float, ...]:  # type: ignore[override]
        return self.schedule.grid.times if self.schedule.grid.full else ()

    def on_grid(self, times: tuple[float, ...]) -> None:
        self.on_full_grid = same_grid(times, self.schedule.grid.full or ())
        if not self.on_full_grid:
            warnings.warn(f"{self._elsewhere(times)}: its own are taken, evidence extrapolated", stacklevel=2)

    def _elsewhere(self, times: tuple[float, ...]) -> str:
        """Returns the words for a run on another grid than that of the calibration; with `strict`, it is refused."""
        grid = f"{len(times)} steps from t = {times[0]:.3f} to {times[-1]:.3f}"
        says = f"{self.schedule.name} was fitted on {self.schedule.grid.steps} other steps, this run has {grid}"
        if self.strict:
            raise ScheduleError(f"{says}; calibrate for these, or attach with strict=False")
        return says

    def install(self, gate: Any) -> ExitStack:
        self.gate = gate
        with ExitStack() as undo:
            undo.callback(self.sites.clear)
            if self.schedule.rules[0].site != "step":
                self.sites[:] = find_sites(self.schedule.rules, gate)
                for _, site in self.sites:
                    site.install(undo)
            return undo.pop_all()

    def on_run_start(self, times: tuple[float, ...]) -> None:
        if self.own_times and not same_grid(times, self.own_times):
            raise ScheduleError(
                f"{self.schedule.name} has {len(self.own_times)} times of its own, and this run begins or ends within "
                "them (strength, denoising_end?): calibrate on the grid (times='grid')"
            )
        plan = self.schedule.loop_plan(self.loops, times)
        if plan is None and times not in self.rules:
            if len(self.rules) >= KEPT:
                del self.rules[next(iter(self.rules))]
            self.rules[times] = self._rule(times)
        self.loops += 1
        self.end = len(times) - self.schedule.left
        self.rule = plan.rules[0] if plan else self.rules[times]
        if self.loops == 1:
            known = "theory" if self.schedule.from_theory else "calibrated"
            self.evidence = known if self.schedule.grid.times else "none"
        elif not self.schedule.made.get("several_loops"):
            self._not_measured("runs its denoising loop several times in one call")
        fitted = self._is_fitted(times)
        self.branches = (self.original.made.get("branches") or ()) if fitted else ()
        if not ((fitted or plan) and self.measured and self.on_full_grid):
            self.evidence = "extrapolated"
        policy, seen = (plan or self.original).rules[0].policy, not self.sites and (fitted or plan)
        self.bands = policy.signal_specs if isinstance(policy, Plan) and seen else None
        self.state = self.rule.policy.init(times)
        self.plan = set(self.rule.steps(times, self.gear) or ()) if self.rule.policy.static else None
        self.history = History(self.rule.forecast.depth, self.rule.forecast.keeps_latents)
        for number, site in self.sites:
            check_compiled(site)
            site.on_run_start(self.schedule.rules[number] if number else self.rule, times, self.gear)

    def on_call_start(self, measured: bool = True) -> None:
        """The pipeline is called, as in the calibration (`measured`) or not: an account of all its loops begins."""
        self.measured, self.loops, self.evidence, self.followed = measured, 0, "none", self.account
        self.innovations.clear()

    def on_change(self, what: str) -> None:
        if not any("callback" in name for name in self.schedule.made.get("call") or ()):
            self._not_measured(f"has a callback that changed {what}")

    def _not_measured(self, what: str) -> None:
        """Notes that this call does what no calibration run does; `ScheduleError` with `strict`."""
        if self.evidence == "none":
            return
        if self.strict:
            raise ScheduleError(
                f"{self.schedule.name} was not calibrated so: this pipeline {what}; attach with strict=False"
            )
        self.evidence = "extrapolated"

    def _check_size(self, here: list[int]) -> None:
        """Compares the shape of one prompt's latents with that calibrated on: images and defaults set sizes too."""
        made, known = self.schedule.made, self.schedule.made.get("latents")
        # Of the loops of one call each may have its own; other engines lay latents out in other dimensions.
        rows = known if isinstance(known, list) else []
        fitted = [one for one in rows if isinstance(one, list) and len(one) == len(here)]
        if not fitted or here in fitted or made.get("several_loops"):
            return
        says, new = f"has latents of shape {here}, not {fitted[0]}", self.evidence == "calibrated"
        self._not_measured(says)
        if new:
            warnings.warn(f"{self.schedule.name} was not measured at this size: this run {says}", stacklevel=2)

    def unlike(self) -> str:
        """Returns how the last call differed from those of the calibration prompts. Syncs the device once."""
        if not self.innovations or self.evidence == "none":
            return ""
        beyond = [(value - spec.band[1]).max() for spec, value in self.innovations]
        *seen, sum_of_all = torch.stack([*beyond, self.deviations]).tolist()
        theory = self.schedule.from_theory
        if outside := sum(value > 0 for value in seen):
            known = "what theory expects of any model" if theory else "the calibration prompts"
            return f"unlike {known} at {outside} of {len(seen)} computed steps"
        if not theory and self.prompts and sum_of_all / self.prompts > BIAS + SINGLE / self.prompts**0.5:
            return f"unlike the calibration prompts, taking the {self.prompts} since attach together"
        return ""

    def _is_fitted(self, times: tuple[float, ...]) -> bool:
        known = self.schedule.grid.times
        return not known or same_run(times, known, self.schedule.left)

    def _rule(self, times: tuple[float, ...]) -> Rule:
        rule = self.schedule.rules[0]
        if self._is_fitted(times):
            return rule
        says, request = self._elsewhere(times), None
        if self.read and self.schedule.kernel:
            with suppress(ScheduleError):  # the sampler adds noise, or is none that theory knows
                request = self.read(self.gate, 1.0)
        anew = replan(self.schedule, times, request)
        how = "its rule is used as it is" if anew is rule else "planned anew"
        warnings.warn(f"{says}: {how}, evidence extrapolated", stacklevel=2)
        return anew

    def should_compute(self, step: Step) -> bool:
        if self.reads_input:
            if step.x is None:
                raise AttachError(f"{self.schedule.name} looks at what enters the denoiser, and that is no tensor")
            self.x = step.x.clone()  # policies compare it with that of later steps
        if step.index == 0 or self.sites or step.index >= self.end:  # inside of the denoiser it is decided there
            return True
        if self.plan is not None:
            return step.index in self.plan
        return self.rule.computes(self.state, replace(step, gear=self.gear, x=self.x))

    def model_output(self, step: SchedulerStep) -> Tensor:
        index, key = step.step.index, (step.track, step.view)
        if step.track == 0 and index < len(self.branches) and step.branches != self.branches[index]:
            # A negative prompt may switch guidance on and off, whatever its argument is called.
            self._not_measured(
                f"calls its denoiser with {step.branches:g} branches at step {index}, not {self.branches[index]:g}"
            )
        known, shape = self.history.streams.get(key), tuple(step.x.shape)
        if key == (0, 0) and index == 0:
            self._check_size(list(shape[1:]))
        if known and known.x0 is not None and known.x0.shape != shape:  # resized: all is computed from here
            if not (step.computed or step.made):
                raise LoopError(
                    f"the latents have the shape {shape} at step {index}, which was skipped, and had "
                    f"{tuple(known.x0.shape)} before: make that call inside of handle.paused()"
                )
            self.end = min(self.end, index)
            self._not_measured("has a callback that changed the shape of its latents")
        if beyond := index >= self.end:
            self._not_measured("goes on after the last step that was calibrated on")
        for _, site in self.sites if step.track == 0 else ():
            site.on_guided(step.u)
        if self.sites or step.made or beyond:
            return step.u
        if step.view == 1:
            self._not_measured("steps its scheduler several times at one time")
        gear = self.gear if self.plan is not None else self.rule.policy.gear(self.state, self.gear)
        where, forecast = replace(step.step, gear=gear, track=step.track, x=self.x), self.rule.forecast
        if step.computed:
            if key == (0, 0) and self.bands is not None:
                self._compare(step, self.bands[gear])
            cond = step.with_prompt if forecast.keeps_branches else None
            self.history.keep(key, step.x, step.u, self.x, cond)
            if key == (0, 0):
                self.rule.policy.observe(self.state, where, step.u)
            if not (forecast.corrects(where) and self._follows(where)):
                return step.u
        return forecast.combine(self.history.known(key, step.x, self.x), where)

    def _follows(self, step: Step) -> bool:
        """Whether the steps computed so far, this one included, are those of the plan: a guard computes others."""
        plan = self.plan if self.plan is not None else self.rule.steps(step.times, step.gear) or ()
        return {step.index, *step.past} == {i for i in plan if i <= step.index}

    def _compare(self, step: SchedulerStep, specs: Sequence[SignalSpec]) -> None:
        """Notes, on the device, how far a computed step was from its forecast."""
        number = len(step.step.past) - 1  # of the computed steps after the first
        if 0 <= number < len(specs):
            outputs = [step.u, *self.history.known((0, 0), step.x).past]
            innovation = compute_signals(specs[number].rows[:1], outputs)[:, 0]
            self.innovations.append((specs[number], innovation))

    def on_run_end(self) -> None:
        if self.bands is not None and len(self.innovations) == len(self.bands[self.gear]) > 0:
            spread = [(value - spec.middle) / spec.deviation for spec, value in self.innovations]
            mean = torch.stack(spread).mean(0)  # of the steps of each prompt
            self.prompts += len(mean)
            self.deviations = self.deviations.to(mean.device) + mean.sum()
        if self.state is not None:
            self.account = self.followed = self.rule.policy.account(self.state, self.gear)
        self.history, self.state, self.x, self.bands, self.plan = History(0), None, None, None, None
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
            name = f"{rule.site} {rule.span}" if rule.span and names.count(rule.site) > 1 else rule.site
            name += f" {site.decision.instance}" if rule.each else ""
            steps = {i for i, flag in enumerate(site.decision.made) if flag}
            made[name] = tuple(sorted(steps.union(made.get(name, ()))))
        return made


class InstantRunner(Runner):
    """A runner whose schedule is that of theory for the grid, the sampler and the guidance of each run.

    Arguments:
        speed: Steps over computed steps.
        read: Returns what a run needs, from what the hook was installed on and the speed, when the run starts.
        guard: Whether to compute everything from where a computed output is farther from its forecast than theory
            expects of any model.
    """

    def __init__(self, speed: float, read: Callable[[Any, float], InstantRequest], guard: bool = False) -> None:
        self.speed, self.wants_guard = check_speed(speed), guard
        self.made: dict[str, Schedule] = {}
        rule = Rule(policy=Uniform(interval=1), forecast=Extrapolate())  # until the first run starts
        super().__init__(Schedule(name=f"instant-{speed:g}x", rules=(rule,)), read=read)

    def on_run_start(self, times: tuple[float, ...]) -> None:
        assert self.read is not None
        request = self.read(self.gate, self.speed)
        if request.key not in self.made:
            if len(self.made) >= KEPT:
                del self.made[next(iter(self.made))]
            self.made[request.key] = load_instant(request, Cache())
        self.original, self.guard = self.made[request.key], self.wants_guard
        self.follow(None)
        super().on_run_start(times)
