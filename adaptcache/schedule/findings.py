"""What was found when a schedule was compared with a pipeline, and how bad it is."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from ..errors import ScheduleError
from .schedule import Schedule

ONE_OUTPUT = (
    "uses the output with the prompt beside the guided one, and {where} cannot tell these apart: calibrate there, or "
    "with --no-branches (fit=Fit(features=('past_x', 'x', 'x0')))"
)
FARTHEST = 2.0  # times the calibrated guidance: beyond, a schedule was worse than as many plain steps


class Grade(IntEnum):
    """What a difference means, from harmless to hopeless."""

    FINE = 0  # the evidence holds
    REPLANNED = 1  # the plan and its weights are made anew from the kernel, where the steps differ
    WARNED = 2  # it runs, but how well was not measured
    REFUSED = 3  # it cannot run

    def __str__(self) -> str:
        return {Grade.REPLANNED: "re-planned"}.get(self, self.name.lower())


@dataclass(frozen=True)
class Finding:
    """A difference between what a schedule was fitted on and what it is to run on."""

    what: str  # what differs
    grade: Grade
    says: str  # the rest of a sentence that begins with the name of the schedule


def check_findings(schedule: Schedule, findings: Sequence[Finding], strict: bool = False) -> None:
    """Raises a `ScheduleError` of all findings where a schedule cannot run; with `strict`, also if not measured."""
    if worst_grade(findings) >= (Grade.WARNED if strict else Grade.REFUSED):
        raise ScheduleError(explain_findings(schedule, findings))


def worst_grade(findings: Sequence[Finding]) -> Grade:
    """Returns the worst grade."""
    return max((finding.grade for finding in findings), default=Grade.FINE)


def explain_findings(schedule: Schedule, findings: Sequence[Finding]) -> str:
    """Returns all findings as one message: a sentence for one, else a line for each."""
    if len(findings) == 1:
        return f"{schedule.name} {findings[0].says}"
    lines = [f"  {finding.grade!s:<10}  {finding.what}: it {finding.says}" for finding in findings]
    return "\n".join([f"{schedule.name} differs from this pipeline in {len(findings)} ways:", *lines])


def too_strong(calibrated: Any, now: Any) -> bool:
    """Whether a guidance is so far beyond the calibrated one that fewer plain steps are better."""
    try:
        return max(1.0, float(now or 0)) > FARTHEST * max(1.0, float(calibrated or 0))
    except (TypeError, ValueError):
        return False
