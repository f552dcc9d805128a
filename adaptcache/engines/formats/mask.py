"""What an engine that reuses at skipped steps can follow: the plan, and the file it is written to."""

import math
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from ...errors import ScheduleError
from ...files import write_atomically
from ...fitting.kernel import Array
from ...fitting.plan import best_plan
from ...forecasts.extrapolate import Extrapolate
from ...limits import STEPS
from ...policies.base import Policy
from ...policies.mask import Mask
from ...policies.polynomial import Polynomial
from ...schedule import Kernel, Schedule
from ...schedule.rule import Rule, Site


@dataclass(frozen=True)
class ReusePlan:
    """Which steps of a run are computed; the others reuse."""

    computed: tuple[int, ...]  # 1 where the denoiser is called and 0 where it is not, by step
    # the error of the final latents in decibels below their energy, which the kernel predicts if errors change nothing
    # of what comes after; None without a kernel
    expected: float | None = None
    lost: tuple[str, ...] = ()  # what of the schedule is not in the plan

    @classmethod
    def of(cls, plan: Collection[int], steps: int) -> Self:
        """Returns a plan from the numbers of its computed steps."""
        return cls(tuple(int(i in plan) for i in range(steps)))

    @property
    def steps(self) -> int:
        return len(self.computed)

    @property
    def calls(self) -> int:
        return sum(self.computed)

    @property
    def strip(self) -> str:
        """The plan as a line of text, computed steps filled."""
        return "".join("█" if step else "·" for step in self.computed)

    @property
    def ratios(self) -> list[float]:
        """Magnitude ratios by which a MagCache with a threshold in (0, 1) follows the plan.

        It skips while the product of ratios stays near 1. A ratio of 2 makes its error 1, so that the step
        is computed and the error starts anew; a ratio of 1 adds none, so that the step is skipped.
        """
        return [2.0 if step else 1.0 for step in self.computed]


@dataclass(frozen=True)
class Exported:
    """A schedule in the form of another engine."""

    ending: str  # the ending of the file's name
    text: str  # the content of the file
    use: str  # how the file is used; `{path}` stands for where it is
    plan: ReusePlan | None  # which steps the engine computes by it; None where it decides during the run
    expects: tuple[str, ...]  # what the run must be like
    lost: tuple[str, ...] = ()  # what the engine cannot do that the schedule does
    engine: str = ""
    version: str = ""  # which version of it was looked at

    def save(self, path: str | Path) -> Path:
        """Writes the file."""
        return write_atomically(path, self.text.encode())

    def explained(self, path: str | Path = "") -> str:
        """Returns what to know about it, in a few lines, with `path` in place of the file's name."""
        lines = []
        if (plan := self.plan) is not None:
            lines.append(f"{plan.strip}  {plan.calls} of {plan.steps} steps computed")
            if plan.expected is not None and math.isfinite(plan.expected):
                lines.append(f"predicted  {plan.expected:.1f} dB in the final latents, by the schedule's kernel")
        lines.append(f"checked    against {self.engine} {self.version}")
        lines += [f"expects    {what}" for what in self.expects]
        lines += [f"lost       {what}" for what in self.lost]
        return "\n".join([*lines, "", self.use.replace("{path}", str(path) or f"schedule{self.ending}")])


@dataclass(frozen=True)
class Settings:
    """What the settings of an engine mean: a rule, or one for each site; for how many steps (None: any)."""

    rule: Rule
    steps: int | None = None
    times: tuple[float, ...] = ()
    more: tuple[Rule, ...] = ()


def check_steps(steps: float) -> int:
    """Returns the number of steps that settings name, if a run can have as many."""
    if not 1 <= steps <= STEPS or steps != int(steps):
        raise ScheduleError(f"a run has 1 to {STEPS} steps, got {steps!r:.40}")
    return int(steps)


def reuse(policy: Policy, site: Site = "step", steps: int | None = None) -> Settings:
    """Returns the settings of an engine that reuses where a policy skips."""
    return Settings(Rule(site=site, policy=policy, forecast=Extrapolate(order=0)), steps)


def reuse_by_mask(values: Sequence[int], site: Site = "step") -> Settings:
    """Returns the settings that a list of 1 for each computed step and 0 for each other means."""
    if not values or any(step not in (0, 1) for step in values):
        raise ScheduleError(f"a mask is a list of 0 and 1, got {values!r:.60}")
    return reuse(Mask(compute_steps=tuple(map(bool, values))), site, len(values))


# Which steps a schedule computes, on its own grid or another.


def move_times(times: tuple[float, ...], steps: int) -> tuple[float, ...]:
    """Returns the times of a grid with another number of steps: the same curve from 1 to 0."""
    if not times:
        return tuple(1 - i / steps for i in range(steps))
    if steps == len(times):
        return times
    done = np.arange(len(times) + 1) / len(times)
    return tuple(map(float, np.interp(np.arange(steps) / steps, done, [*times, 0.0])))


def computed_steps(schedule: Schedule, gear: int = 0, times: tuple[float, ...] | None = None) -> list[int]:
    """Returns the numbers of the steps that a schedule computes, on its own grid or another.

    Raises:
        ScheduleError: The policy decides by what it sees in a run, or parts of the denoiser are skipped.
    """
    rule = schedule.rules[0]
    if len(schedule.rules) > 1 or rule.site not in ("step", "blocks") or rule.span or rule.each:
        sites = ", ".join(dict.fromkeys(rule.site for rule in schedule.rules))
        raise ScheduleError(
            f"{schedule.name} skips parts of the denoiser ({sites}), which settings of other engines cannot "
            "express; export a schedule for whole steps"
        )
    return schedule.steps(gear, times)


def played_steps(rule: Rule, steps: int) -> list[int]:
    """Returns the numbers of the steps that a rule computes in a run of so many steps, at even times."""
    return computed_steps(Schedule(name="rule", rules=(rule,)), times=move_times((), steps))


# Plans a schedule anew for engines that cannot forecast, only reuse.
#
# Other engines add the last residual of the whole block stack at a skipped step. As a linear forecast of
# the guided output that is the weight 1 on the last computed one, so the kernel tells its error in closed
# form, `G_ii - 2 G_ic + G_cc`, and the best plan for *reuse* is not the best plan for matched weights.

FORBIDDEN = 1e12  # not infinite: it is multiplied by sensitivities, which can be 0


def price_reuse(kernel: Kernel, times: tuple[float, ...]) -> Array:
    """Returns the weighted squared errors of reuse: of step i from step c at `[c, i]`, with shape (N, N)."""
    gram, weights = kernel.on_grid(times)
    energy = np.diagonal(gram)
    errors = energy[None, :] - 2 * gram + energy[:, None]
    return np.asarray(np.maximum(errors, 0.0) * weights[None, :])


def predict_error(kernel: Kernel, times: tuple[float, ...], computed: Sequence[int]) -> float:
    """Returns the squared error of the final latents, over their energy, if the steps that a plan skips are reused.

    The errors of single steps do not add up as energies: an output that is reused again and again is wrong in the same
    direction each time. So they are added as vectors, whose inner products the kernel knows.
    """
    gram, weights = kernel.on_grid(times)
    skipped = np.flatnonzero(np.array(computed) == 0)
    sources = np.maximum.accumulate(np.where(computed, np.arange(len(times)), 0))
    sums = np.zeros(len(times))
    np.add.at(sums, sources[skipped], np.sqrt(weights[skipped]))
    np.add.at(sums, skipped, -np.sqrt(weights[skipped]))
    return float(sums @ gram @ sums)


class ReusePlanner:
    """Plans one gear of a schedule within the limits of an engine: its calls and steps, or others."""

    def __init__(self, schedule: Schedule, gear: int = 0, calls: int | None = None, steps: int | None = None) -> None:
        self.schedule, self.gear = schedule.resolve_gear(gear)
        native = len(schedule.grid.times)
        if schedule.grid.full and steps not in (None, native):
            raise ScheduleError(f"{schedule.name} has {native} times of its own and goes on no other grid")
        if steps is not None and steps < 1:
            raise ValueError(f"steps must be 1 or more, got {steps}")
        if not (steps or native):
            raise ScheduleError(f"{schedule.name} is for any number of steps; say for how many (steps)")
        self.steps = steps or native
        self.times = move_times(schedule.grid.times, self.steps)
        self.moved = native if native not in (0, self.steps) else 0
        self.own = computed_steps(schedule, gear, self.times)
        self.asked = calls
        self.calls = len(self.own) if calls is None else calls
        if not 1 <= self.calls <= self.steps:
            raise ValueError(f"calls must be in [1, {self.steps}] for {self.steps} steps, got {self.calls}")

    def best(self, *, warm_up: int = 1, longest: int | None = None, forced: Collection[int] = ()) -> ReusePlan:
        """Returns the schedule's plan where it was made for reuse, else the best one for reuse.

        Arguments:
            warm_up: Steps at the start that the engine always computes.
            longest: The most steps that the engine skips from one computed step to the next.
            forced: Further steps that it always computes, without starting to count anew.

        Raises:
            ScheduleError: No plan with as many calls is within these limits, or there is no kernel.
        """
        longest, forced = longest or self.steps, [step for step in forced if step < self.steps]
        always = {*range(warm_up), *forced}

        def allowed(computed: Sequence[int]) -> bool:
            counted = "".join(str(step) for i, step in enumerate(computed) if i not in forced)
            return all(computed[i] for i in always) and max(map(len, counted.split("1"))) <= longest

        own, kernel, forecast = self.predicted(self.own), self.schedule.kernel, self.schedule.rules[0].forecast
        kept = self.calls == own.calls and allowed(own.computed)
        if kept and isinstance(forecast, Extrapolate) and forecast.order == 0:
            return own
        engine = f"this engine, which always computes {', '.join(map(str, sorted(always)))}"
        engine += f", and skips at most {longest} in a row" if longest < self.steps else ""
        if kernel is None and not kept:
            raise ScheduleError(
                f"{self.schedule.name} carries no kernel and cannot be planned anew for {engine}; calibrate again"
            )
        plan = own if kernel is None else self.predicted(self._plan(kernel, always, longest, forced))
        if not allowed(plan.computed):
            raise ScheduleError(f"{self.calls} of {self.steps} steps are too few for {engine}; export with more calls")
        if kernel is None:
            where = "at steps that were chosen for the forecast, as there is no kernel"
        else:
            same = plan.computed == own.computed
            where = "at the same steps" if same else f"at steps chosen anew for it, not {own.strip}"
        lost = [f"the forecast ({forecast.type}) becomes reuse of the last residual, {where}"]
        if self.moved:
            lost.append(f"it was fitted on {self.moved} steps, and is moved to {self.steps}")
        return replace(plan, lost=tuple(lost))

    def every_nth(self, *, last: bool) -> tuple[int, ReusePlan]:
        """Returns the interval whose calls are nearest to the budget, and its plan.

        With `last` the engine always computes the last step too.
        """

        def steps(interval: int) -> list[int]:
            return sorted({*range(0, self.steps, interval), *([self.steps - 1] if last else [])})

        interval = min(range(1, self.steps + 1), key=lambda k: abs(len(steps(k)) - self.calls))
        lost = "its plan becomes every n-th step and its weights become reuse, as this engine takes no mask"
        return interval, replace(self.predicted(steps(interval)), lost=(lost,))

    def predicted(self, plan: Collection[int]) -> ReusePlan:
        """Returns a plan with the error that the kernel predicts of reuse."""
        found = ReusePlan.of(plan, self.steps)
        if self.schedule.kernel is None:
            return found
        total = predict_error(self.schedule.kernel, self.times, found.computed)
        return replace(found, expected=-10 * math.log10(total) if total > 0 else math.inf)

    def _plan(self, kernel: Kernel, always: Collection[int], longest: int, forced: Collection[int]) -> list[int]:
        n, priced = self.steps, price_reuse(kernel, self.times)
        gaps = np.arange(n)[None, :] - np.arange(n)[:, None]
        priced[gaps > longest] = FORBIDDEN
        for step in always:  # from there on, nothing before it is reused
            priced[:step, step:] = FORBIDDEN
        # Reuse looks at the last computed step only; the one before matters where its skips count too.
        pairs = np.where(gaps[None] > 0, np.broadcast_to(priced, (n, n, n)), 0.0)
        for step in forced:
            pairs[:step, step][(gaps[:step] > longest + 1) & (np.arange(n) > step)] = FORBIDDEN
        return best_plan(pairs, np.ones(n), self.calls)


@dataclass(frozen=True)
class Format:
    """The settings of one engine."""

    name: str  # of the engine
    version: str  # which version of it was looked at
    # returns what settings mean; is given the number of steps of a run where that is known
    read: Callable[[Any, int | None], Settings]
    write: Callable[[ReusePlanner], Exported] | None = None  # writes a plan; None where the engine reads none
    # writes TeaCache's polynomial, of which it is given five coefficients
    write_polynomial: Callable[[Polynomial, list[float]], Exported] | None = None
    keys: tuple[str, ...] = ()  # keys of its settings. Settings are taken to be of the format of which they have most.
    models: tuple[str, ...] = ()  # denoisers for which the engine follows a plan; empty where it says so itself
    void: str = "it is a format of results, that no engine reads"  # why nothing is written
    # lets the engine run a diffusers pipeline by an export, until the context is closed
    apply: Callable[[Any, Exported], AbstractContextManager[None]] | None = None
