"""Which steps are computed, for engines that reuse at the others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ...errors import ScheduleError
from ...files import write_atomically
from ...fitting.kernel import Array, resample_kernel
from ...fitting.plan import best_plan
from ...forecasts.extrapolate import Extrapolate
from ...schedule.format import Kernel, same_grid
from ...schedule.gears import resolve_gear
from ...schedule.schedule import Schedule
from ...step import Step


@dataclass(frozen=True)
class Mask:
    """Which steps of a run are computed.

    Arguments:
        computed: 1 where the denoiser is called and 0 where it is not, by step.
        expected: The error of the final latents in decibels below their energy, which the kernel
            predicts if errors change nothing of what comes after; None without a kernel.
        lost: What of the schedule is not in the mask.
    """

    computed: tuple[int, ...]
    expected: float | None = None
    lost: tuple[str, ...] = ()

    @property
    def steps(self) -> int:
        """The number of steps N."""
        return len(self.computed)

    @property
    def calls(self) -> int:
        """How many of them are computed."""
        return sum(self.computed)

    @property
    def longest(self) -> int:
        """The most steps in a row that are skipped."""
        return max(map(len, "".join(map(str, self.computed)).split("1")))

    @property
    def strip(self) -> str:
        """The mask as a line of text, computed steps filled."""
        return "".join("█" if step else "·" for step in self.computed)


# What an export is: a file for another engine, and what a person has to know about it.


@dataclass(frozen=True)
class Exported:
    """A schedule in the form of another engine.

    Arguments:
        engine: The engine.
        ending: The ending of the file's name.
        text: The content of the file.
        use: How the file is used; `{path}` stands for where it is.
        mask: Which steps the engine computes by it; None where it decides during the run.
        lost: What the engine cannot do that the schedule does.
        expects: What the run must be like.
    """

    engine: str
    ending: str
    text: str
    use: str
    mask: Mask | None
    lost: tuple[str, ...]
    expects: tuple[str, ...]

    def save(self, path: str | Path) -> Path:
        """Writes the file."""
        return write_atomically(path, self.text.encode())

    def explained(self, path: str | Path = "") -> str:
        """Returns what to know about it, in a few lines, with `path` in place of the file's name."""
        mask, lines = self.mask, []
        if mask is not None:
            lines.append(f"{mask.strip}  {mask.calls} of {mask.steps} steps computed")
            if mask.expected is not None and math.isfinite(mask.expected):
                lines.append(
                    f"predicted  {mask.expected:.1f} dB in the final latents, by the schedule's kernel"
                )
        lines += [f"expects    {what}" for what in self.expects]
        lines += [f"lost       {what}" for what in self.lost]
        name = str(path) or f"schedule{self.ending}"
        return "\n".join([*lines, "", self.use.replace("{path}", name)])


# Which steps a schedule computes, on its own grid or another.


def moved(times: tuple[float, ...], steps: int) -> tuple[float, ...]:
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
        ScheduleError: The policy decides by what it sees in a run.
    """
    schedule, gear = resolve_gear(
        schedule, gear, guard=False
    )  # exported is one plan, not the choice among them
    rule = schedule.rules[0]
    policy = rule.policy
    if len(schedule.rules) > 1 or rule.site not in ("step", "blocks") or rule.span:
        sites = ", ".join(dict.fromkeys(rule.site for rule in schedule.rules))
        raise ScheduleError(
            f"{schedule.name} skips parts of the denoiser ({sites}), and no engine can be told so here; "
            "export a schedule for whole steps"
        )
    times = schedule.grid.times if times is None else times
    if getattr(policy, "signal", "none") != "none":
        raise ScheduleError(
            f"{schedule.name} decides during the run (policy {policy.type!r}) and has no mask to export; "
            "export a schedule with a plan"
        )
    state, past = policy.init(times), [0]
    for i in range(1, len(times)):
        if rule.computes(state, Step(i, times, tuple(reversed(past)), gear)):
            past.append(i)
    return past


# Plans a schedule anew for engines that cannot forecast, only reuse.
#
# Other engines add the last residual of the whole block stack at a skipped step. As a linear forecast of
# the guided output that is the weight 1 on the last computed one, so the kernel tells its error in closed
# form, `G_ii - 2 G_ic + G_cc`, and the best plan for *reuse* is not the best plan for matched weights.

FORBIDDEN = 1e12  # not infinite: it is multiplied by sensitivities, which can be 0


def reuse_errors(kernel: Kernel, times: tuple[float, ...]) -> Array:
    """Returns the weighted squared errors of reuse: of step i from step c at `[c, i]`, with shape (N, N)."""
    gram, weights = on_grid(kernel, times)
    energy = np.diagonal(gram)
    errors = energy[None, :] - 2 * gram + energy[:, None]
    return np.asarray(np.maximum(errors, 0.0) * weights[None, :])


def total_error(kernel: Kernel, times: tuple[float, ...], computed: Sequence[int]) -> float:
    """Returns the squared error of the final latents, over their energy, if a plan's steps are reused.

    The errors of single steps do not add up as energies: an output that is reused again and again is wrong in
    the same direction each time. So they are added as vectors, whose inner products the kernel knows.

    Arguments:
        kernel: The kernel.
        times: The grid with shape (N,).
        computed: 1 where a step is computed and 0 where the one before is reused, with shape (N,).
    """
    gram, weights = on_grid(kernel, times)
    skipped = np.flatnonzero(np.array(computed) == 0)
    sources = np.maximum.accumulate(np.where(computed, np.arange(len(times)), 0))
    sums = np.zeros(len(times))
    np.add.at(sums, sources[skipped], np.sqrt(weights[skipped]))
    np.add.at(sums, skipped, -np.sqrt(weights[skipped]))
    return float(sums @ gram @ sums)


def on_grid(kernel: Kernel, times: tuple[float, ...]) -> tuple[Array, Array]:
    """Returns the inner products and sensitivities of a kernel on a grid."""
    gram, weights = np.array(kernel.gram), np.array(kernel.sensitivity)
    if not same_grid(kernel.times, times):
        gram = resample_kernel(gram, np.array(kernel.times), np.array(times))
        weights = np.interp(times, kernel.times[::-1], weights[::-1])
    return gram, weights


class Reuse:
    """Gives the masks of one gear of a schedule.

    Arguments:
        schedule: The schedule.
        gear: Which of its plans.
        calls: How many steps to compute; None takes as many as the gear does.
        steps: How many steps a run has; None takes those of the schedule.
    """

    def __init__(
        self, schedule: Schedule, gear: int = 0, calls: int | None = None, steps: int | None = None
    ) -> None:
        self.schedule, native = schedule, len(schedule.grid.times)
        if not (steps or native):
            raise ScheduleError(f"{schedule.name} is for any number of steps; say for how many (steps)")
        self.steps = steps or native
        self.times = times = moved(schedule.grid.times, self.steps)
        self.moved = native if native not in (0, self.steps) else 0
        self.own = computed_steps(schedule, gear, times)
        self.calls = len(self.own) if calls is None else calls
        if not 1 <= self.calls <= self.steps:
            raise ValueError(f"calls must be in [1, {self.steps}] for {self.steps} steps, got {self.calls}")
        kernel = schedule.kernel
        self.errors = reuse_errors(kernel, times) if kernel is not None else None

    def best(self, *, warm_up: int = 1, longest: int | None = None) -> Mask:
        """Returns the schedule's plan where it was made for reuse, else the best one for reuse.

        Arguments:
            warm_up: Steps at the start that the engine always computes.
            longest: The most steps in a row that the engine can skip.
        """
        forecast = self.schedule.rules[0].forecast
        for_reuse = isinstance(forecast, Extrapolate) and forecast.order == 0
        own = self._mask(self.own)
        allowed = own.longest <= (longest or self.steps) and set(range(warm_up)) <= set(self.own)
        kept = allowed and self.calls == own.calls
        if kept and for_reuse:
            return own
        if self.errors is not None:
            mask = self._mask(self._planned(self.errors, warm_up, longest or self.steps))
            same = mask.computed == own.computed
            where = "at the same steps" if same else f"at steps chosen anew for it, not {own.strip}"
        elif kept:
            mask, where = own, "at steps that were chosen for the forecast, as there is no kernel"
        else:
            raise ScheduleError(
                f"{self.schedule.name} carries no kernel and cannot be planned anew for this engine; "
                "calibrate again"
            )
        lost = [f"the forecast ({forecast.type}) becomes reuse of the last residual, {where}"]
        if self.moved:
            lost.append(f"it was fitted on {self.moved} steps, and is moved to {self.steps}")
        return replace(mask, lost=tuple(lost))

    def every(self, *, last: bool) -> tuple[int, Mask]:
        """Returns the interval whose calls are nearest to the budget, and its mask.

        Arguments:
            last: Whether the engine always computes the last step.
        """

        def steps(interval: int) -> list[int]:
            return sorted({*range(0, self.steps, interval), *([self.steps - 1] if last else [])})

        interval = min(range(1, self.steps + 1), key=lambda k: abs(len(steps(k)) - self.calls))
        lost = "its plan becomes every n-th step and its weights become reuse, as this engine takes no mask"
        return interval, self._mask(steps(interval), lost)

    def _planned(self, errors: Array, warm_up: int, longest: int) -> list[int]:
        n, priced = self.steps, errors.copy()
        gaps = np.arange(n)[None, :] - np.arange(n)[:, None]
        priced[gaps > longest] = FORBIDDEN
        priced[:, :warm_up] = FORBIDDEN
        # Reuse looks at the last computed step only: the one before it does not matter.
        pairs = np.where(gaps[None] > 0, np.broadcast_to(priced, (n, n, n)), 0.0)
        plan = best_plan(pairs, np.ones(n), self.calls)
        if self._mask(plan).longest > longest or not set(range(warm_up)) <= set(plan):
            raise ScheduleError(
                f"{self.calls} of {n} steps are too few for this engine: it computes the first {warm_up} "
                f"and skips at most {longest} in a row; export with more calls"
            )
        return plan

    def _mask(self, steps: Sequence[int], *lost: str) -> Mask:
        computed = tuple(int(i in set(steps)) for i in range(self.steps))
        if self.schedule.kernel is None:
            return Mask(computed, None, lost)
        total = total_error(self.schedule.kernel, self.times, computed)
        return Mask(computed, -10 * math.log10(total) if total > 0 else math.inf, lost)
