"""Counts what fitting costs, by the stage that progress is reported of."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from ..calibration.fit import fitted
from ..policies.plan import Plan
from ..profile import Profile
from ..profiling.measure import Progress, measure
from ..runs import Call, Prompt
from ..runtime.runner import Runner
from ..schedule.format import Evidence
from ..schedule.schedule import Schedule
from .bench import Bench
from .line import Cost, Line
from .trial import BlockCounter


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


# Our schedules in a comparison: fitted for each budget, measured like the others, and what that cost.

OURS = "adaptcache"


@dataclass(frozen=True)
class Fitted:
    """What was fitted before anything is compared.

    Arguments:
        profile: What was measured on the calibration prompts; None where nobody needs it.
        profiling: The work that took, by stage.
        schedules: Our schedules, by budget; none where ours are not compared.
        work: The work they took, the profile's included, by stage.
    """

    profile: Profile | None = None
    profiling: dict[str, float] = field(default_factory=dict)
    schedules: dict[float, Schedule] = field(default_factory=dict)
    work: dict[str, float] = field(default_factory=dict)


def fit_ours(
    pipe: Any,
    call: Call,
    prompts: Sequence[Prompt],
    allowed: Mapping[float, int],
    *,
    batch_size: int,
    progress: Progress,
) -> Fitted:
    """Measures the profile and fits a schedule for each budget; none where no budgets are given.

    Nothing is taken from the store of profiles, so that what it costs is counted and not looked up.

    Arguments:
        pipe: A diffusers pipeline; it is not changed.
        call: How to call it in full.
        prompts: Calibration prompts.
        allowed: Denoiser calls by budget.
        batch_size: Prompts in a run.
        progress: Told the stage, what is done and of how much.
    """
    with Ledger(pipe, progress) as ledger:
        given = measure(pipe, call, prompts, batch_size=batch_size, progress=ledger.progress)
        profiling = dict(ledger.work)
        schedules = {
            budget: fitted(pipe, call, prompts, given, calls, batch_size=batch_size, progress=ledger.progress)
            for budget, calls in allowed.items()
        }
    return Fitted(given.profile, profiling, schedules, dict(ledger.work))


def measure_ours(bench: Bench, fits: Fitted) -> tuple[list[Line], list[Cost], dict[float, Schedule]]:
    """Returns a line for each of our schedules, what they cost, and the schedules with their evidence."""
    lines, schedules = list[Line](), dict[float, Schedule]()
    call, prompts = bench.case.call, len(bench.held_out)
    for budget, schedule in fits.schedules.items():
        runner = Runner(schedule, False, 0)
        trial = bench.measured(f"{OURS} {budget:g}", call, runner)
        line = bench.line(OURS, budget, trial, call, runner, {"plan": plan_of(schedule)})
        lines.append(line)
        schedules[budget] = with_evidence(schedule, line, prompts)
    cost = Cost(OURS, {stage: work / bench.call_work for stage, work in fits.work.items()})
    return lines, [cost] if lines else [], schedules


def plan_of(schedule: Schedule) -> list[int]:
    """Returns the numbers of the steps that a schedule computes."""
    policy = schedule.rules[0].policy
    assert isinstance(policy, Plan)
    return policy.steps(schedule.grid.times)


def with_evidence(schedule: Schedule, line: Line, prompts: int) -> Schedule:
    """Returns the schedule with what the comparison measured of it."""
    steps, calls = len(schedule.grid.times), len(plan_of(schedule))
    assert line.psnr is not None
    evidence = Evidence(
        prompts=f"{prompts} held-out", n=prompts, calls=(calls, steps), psnr=line.psnr, ssim=line.ssim,
        speed=steps / calls,
    )  # fmt: skip
    return schedule.model_copy(update={"evidence": evidence})
