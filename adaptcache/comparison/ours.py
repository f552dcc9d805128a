"""Our schedules in a comparison: fitted for each budget, measured like the others, and what that cost."""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from ..calibration.fit import fit_schedule
from ..profile import Profile
from ..profiling.measure import measure
from ..runs import Progress, PromptSet, Setup
from ..runtime.runner import Runner
from ..schedule.schedule import Schedule
from .baselines import Baseline, Case, Params, Ready
from .trial import MacCounter, pipe_of

OURS = "adaptcache"


class CostTracker:
    """Counts the work between reports of progress, by their stage."""

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
class Ours(Baseline):
    """Our schedules, run as the other methods are."""

    name = OURS
    about = "schedules fitted on the calibration prompts"

    profile: Profile | None = None  # what was measured on the calibration prompts; None where no method needs it
    profiling: Mapping[str, float] = field(default_factory=dict)  # the work that took, by stage
    # one for each budget; none where ours are not compared
    schedules: Mapping[float, Schedule] = field(default_factory=dict)
    work: Mapping[str, float] = field(default_factory=dict)  # the work they took, the profile's included, by stage

    @classmethod
    def fit(cls, setup: Setup, prompts: PromptSet, allowed: Mapping[float, int]) -> "Ours":
        """Measures the profile and fits a schedule for each budget; nothing is taken from the cache."""
        with MacCounter(pipe_of(setup)) as counter:
            costs = CostTracker(counter, setup.progress)
            setup = replace(setup, cache=None, progress=costs.report)
            measurement = measure(setup, prompts)
            profiling = dict(costs.work)
            fitted = {budget: fit_schedule(setup, prompts, measurement, calls) for budget, calls in allowed.items()}
            costs.book(next(reversed(costs.work)))  # what came after the last report
        return cls(measurement.profile, profiling, fitted, dict(costs.work))

    def propose(self, case: Case) -> list[Params]:
        return [{"plan": schedule.steps()} for schedule in self.schedules.values()]

    @contextmanager
    def apply(self, case: Case, params: Params) -> Iterator[Ready]:
        chosen = next(one for one in self.schedules.values() if one.steps() == params["plan"])
        yield Ready(case.setup.call, Runner(chosen, gear=0))
