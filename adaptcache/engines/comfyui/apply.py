"""Applies a schedule to a MODEL of ComfyUI: a clone that skips, and what it can tell of its runs."""

from __future__ import annotations

import warnings
from typing import Any

from ...errors import ScheduleError
from ...runtime.report import Report
from ...runtime.runner import Runner
from ...schedule.findings import Finding, Grade, explain_findings, worst_grade
from ...schedule.schedule import Schedule
from .compatibility import compare_model, compare_run, knows_plain
from .gate import KEY, Gate, Run
from .identity import state_of

__all__ = ["Applied", "applied_to"]


class Applied:
    """A schedule on a MODEL.

    Arguments:
        model: The MODEL, which stays as it is.
        schedule: What to follow.
        strict: Refuse steps, weights and settings it was not fitted on, where it would warn.
        gear: Which plan to follow; None leaves it to the schedule.
        guard: Compare what is seen at computed steps with what calibration saw.

    Raises:
        ScheduleError: The schedule does not fit.
        LookupError: It has no such gear.
    """

    def __init__(
        self, model: Any, schedule: Schedule, *, strict: bool = False, gear: int | None = None, guard: bool = False
    ) -> None:
        if applied_to(model):
            raise ScheduleError(
                f"{schedule.name} would be the second schedule on this MODEL: connect the MODEL that comes before the "
                "other Apply Schedule"
            )
        self.schedule, self.strict = schedule, strict
        self._warned: set[str] = set()
        self._runner = Runner(schedule, strict, gear, guard)
        self._found, self._state = list(compare_model(schedule, model)), state_of(model)
        self._judge(self._found)
        self._gate = Gate(self._runner, self._before, plain=knows_plain(schedule))
        self.model = self._gate.install(model)  # the clone that skips

    def _before(self, run: Run, times: tuple[float, ...]) -> None:
        """Compares a run that is about to begin with what was calibrated; warns or refuses."""
        model = run.guider.model_patcher
        if (state := state_of(model)) != self._state:  # a node after this one has changed it
            self._found, self._state = list(compare_model(self.schedule, model)), state
        found = [*self._found, *compare_run(self.schedule, run)]
        self._runner.on_call_start(measured=worst_grade(found) < Grade.WARNED)
        self._judge(found)

    def _judge(self, found: list[Finding]) -> None:
        bad = [one for one in found if one.grade >= Grade.WARNED]
        if worst_grade(bad) == Grade.REFUSED or (self.strict and bad):
            raise ScheduleError(explain_findings(self.schedule, bad))
        for finding in bad:
            if finding.says not in self._warned:
                self._warned.add(finding.says)
                warnings.warn(explain_findings(self.schedule, [finding]), stacklevel=3)

    def report(self) -> Report:
        """Returns what the last run did."""
        gate, runner = self._gate, self._runner
        if gate.why_full:
            return Report(gate.made, "none", why=gate.why_full)
        account = runner.account
        return Report(gate.made, runner.evidence, account.gear, account.why(), unlike=runner.unlike())


def applied_to(model: Any) -> Gate | None:
    """Returns the gate of the schedule that is on a MODEL; None where there is none."""
    found = model.get_wrappers("sampler_sample", KEY)
    return found[0].__self__ if found else None
