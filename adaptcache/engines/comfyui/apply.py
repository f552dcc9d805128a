"""Applies a schedule to a MODEL of ComfyUI: a clone that skips, and what it can tell of its runs."""

import warnings
from typing import Any

from ...errors import ScheduleError
from ...runtime.report import Report
from ...runtime.runner import InstantRunner, Runner
from ...schedule.findings import Finding, Grade, check_findings, explain_findings, worst_grade
from ...schedule.instant import InstantRequest
from ...schedule.schedule import Schedule
from .compatibility import cache_on, compare_model, compare_run, knows_plain
from .gate import KEY, Gate, Run, watched
from .grid import read_run
from .identity import state_of


class Applied(Gate):
    """A schedule on a MODEL, whose clone `model` skips.

    Arguments:
        model: The MODEL, which stays as it is.
        schedule: What to follow; None follows an instant schedule, made from theory when a run begins.
        speed: Of an instant schedule: steps over computed steps.
        strict: Refuse steps, weights and settings it was not fitted on, where it would warn.
        gear: Which plan to follow; None leaves it to the schedule.

    Raises:
        ScheduleError: The schedule does not fit.
        LookupError: It has no such gear.
    """

    def __init__(
        self, model: Any, schedule: Schedule | None = None, *, speed: float | None = None, strict: bool = False,
        gear: int | None = None,
    ) -> None:  # fmt: skip
        if (schedule is None) == (speed is None):
            raise ValueError("give either a schedule, or the speed of an instant one")
        if applied_to(model):
            raise ScheduleError(
                "there is a schedule on this MODEL already, and a second one would see nothing: connect the MODEL "
                "that comes before the other node"
            )
        self.strict = strict
        self._warned: set[str] = set()
        self._found: list[Finding] = []
        self._runner = (
            Runner(schedule, strict, gear, read=self._read) if schedule else InstantRunner(speed, self._read)  # type: ignore[arg-type]
        )
        self._fitted, self._state = schedule, state_of(model)
        if schedule:
            self._found = list(compare_model(schedule, model))
        self._judge(self._found)
        super().__init__(self._runner, self._before, plain=schedule is None or knows_plain(schedule))
        self.model = watched(model, self)

    @property
    def schedule(self) -> Schedule:
        """What is followed; of an instant schedule: what the last run followed."""
        return self._runner.original

    def _read(self, gate: Any, speed: float) -> InstantRequest:
        """Returns what theory needs of the run that is under way."""
        return read_run([*self.loops.values()][-1].run, speed)

    def _before(self, run: Run, times: tuple[float, ...]) -> None:
        """Compares a run that is about to begin with what was calibrated; warns or refuses."""
        model, fitted = run.guider.model_patcher, self._fitted
        if fitted and (state := state_of(model)) != self._state:  # a node after this one has changed it
            self._found, self._state = list(compare_model(fitted, model)), state
        found = [*self._found, *(compare_run(fitted, run) if fitted else cache_on(run))]
        self._runner.on_call_start(measured=worst_grade(found) < Grade.WARNED)
        self._judge(found)

    def _judge(self, found: list[Finding]) -> None:
        bad = [one for one in found if one.grade >= Grade.WARNED]
        check_findings(self.schedule, bad, self.strict)
        for finding in bad:
            if finding.says not in self._warned:
                self._warned.add(finding.says)
                warnings.warn(explain_findings(self.schedule, [finding]), stacklevel=3)

    def report(self) -> Report:
        """Returns what the last run did."""
        runner = self._runner
        if self.why_full:
            return Report(self.made, "none", why=self.why_full)
        account = runner.account
        return Report(self.made, runner.evidence, account.gear, account.why(), unlike=runner.unlike())


def applied_to(model: Any) -> Applied | None:
    """Returns the schedule that is on a MODEL; None where there is none."""
    found = model.get_wrappers("sampler_sample", KEY)
    owner = found[0].__self__ if found else None
    return owner if isinstance(owner, Applied) else None
