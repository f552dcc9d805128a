"""Our schedules in a comparison: fitted for each budget, measured like the others, and what that cost."""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from ..calibration.fit import fit_schedule
from ..policies.plan import Plan
from ..profile import Profile
from ..profiling.measure import measure
from ..runs import Progress, PromptSet, Setup
from ..runtime.runner import Runner
from ..schedule.format import Evidence
from ..schedule.schedule import Schedule
from .baselines import Baseline, Case, Params, Ready
from .runner import MethodResult
from .trial import MacCounter, pipe_of

OURS = "adaptcache"


class CostTracker:
    """Counts the work between reports of progress, by their stage.

    Arguments:
        counter: Counts the work.
        progress: Who else gets the reports.
    """

    def __init__(self, counter: MacCounter, progress: Progress) -> None:
        self.counter, self.progress, self.booked = counter, progress, 0.0
        self.work: dict[str, float] = defaultdict(float)

    def report(self, stage: str, done: int, of: int) -> None:
        """Books the work since the last report; "matching 7 calls" is booked as matching."""
        self.book(re.sub(r" \d+ calls$", "", stage))
        self.progress(stage, done, of)

    def book(self, stage: str) -> None:
        """Adds the work since the last booking to a stage."""
        self.work[stage] += self.counter.work - self.booked
        self.booked = self.counter.work


@dataclass(frozen=True)
class Fitted:
    """What was fitted before anything is compared.

    Arguments:
        profile: What was measured on the calibration prompts; None where no method needs it.
        profiling: The work that took, by stage.
        schedules: Our schedules, by budget; none where ours are not compared.
        work: The work they took, the profile's included, by stage.
    """

    profile: Profile | None = None
    profiling: dict[str, float] = field(default_factory=dict)
    schedules: dict[float, Schedule] = field(default_factory=dict)
    work: dict[str, float] = field(default_factory=dict)


def fit_ours(setup: Setup, prompts: PromptSet, allowed: Mapping[float, int]) -> Fitted:
    """Measures the profile and fits a schedule for each budget; none where no budgets are given.

    Nothing is taken from the cache, so that what it costs is counted.

    Arguments:
        setup: Who runs, and how.
        prompts: Calibration prompts.
        allowed: Denoiser calls by budget.
    """
    with MacCounter(pipe_of(setup)) as counter:
        costs = CostTracker(counter, setup.progress)
        setup = replace(setup, cache=None, progress=costs.report)
        measurement = measure(setup, prompts)
        profiling = dict(costs.work)
        schedules = {
            budget: fit_schedule(setup, prompts, measurement, calls) for budget, calls in allowed.items()
        }
        costs.book(next(reversed(costs.work)))  # what came after the last report
    return Fitted(measurement.profile, profiling, schedules, dict(costs.work))


class Ours(Baseline):
    """Our schedules, run as the other methods are."""

    name = OURS
    about = "schedules fitted on the calibration prompts"

    def __init__(self, schedules: Mapping[float, Schedule]) -> None:
        self.schedules = {tuple(plan_of(schedule)): schedule for schedule in schedules.values()}

    def propose(self, case: Case) -> list[Params]:
        return [{"plan": list(plan)} for plan in self.schedules]

    @contextmanager
    def apply(self, case: Case, params: Params) -> Iterator[Ready]:
        yield Ready(case.setup.call, Runner(self.schedules[tuple(params["plan"])], gear=0))


def plan_of(schedule: Schedule) -> list[int]:
    """Returns the numbers of the steps that a schedule computes."""
    policy = schedule.rules[0].policy
    assert isinstance(policy, Plan)
    return policy.steps(schedule.grid.times)


def with_evidence(schedule: Schedule, result: MethodResult, prompts: int) -> Schedule:
    """Returns the schedule with what the comparison measured of it."""
    steps, calls = len(schedule.grid.times), len(plan_of(schedule))
    assert result.psnr is not None
    evidence = Evidence(
        prompts=f"{prompts} held-out", n=prompts, calls=(calls, steps), psnr=result.psnr, ssim=result.ssim,
        speed=steps / calls,
    )  # fmt: skip
    return schedule.model_copy(update={"evidence": evidence})
