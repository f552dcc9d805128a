"""Compares schedules with other methods: same prompts, noise, grid and dtype, in one process.

Every method is given its best chance. All its settings are tried on calibration prompts, and for each
budget the best one that stays at or below it is measured on held-out prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..calibrate import Measurement, calls_for, fitted, measure
from ..call import Call, Prompt
from ..policies.plan import Plan
from ..profiling.record import twin
from ..profiling.store import Store
from ..runtime import Runner
from ..schedule import Evidence, Schedule
from .bench import Bench, Line, Progress
from .peers import PEERS, Case

__all__ = ["OURS", "Comparison", "Line", "compare", "methods_of"]


OURS = "adaptcache"


@dataclass(frozen=True)
class Comparison:
    """The lines of all methods, and the images behind them.

    Arguments:
        steps: Steps of the full run.
        held_out: Prompts everything was measured on.
        swept: Calibration prompts the settings were tried on.
        lines: One for each budget and method.
        images: Decoded images of the full run, under "full run", and of each method and budget.
        schedules: Our schedules, by budget.
    """

    steps: int
    held_out: int
    swept: int
    lines: list[Line]
    images: dict[str, list[np.ndarray]]
    schedules: dict[float, Schedule]

    def data(self) -> dict[str, Any]:
        """Returns all numbers as plain values."""
        return {
            "steps": self.steps, "held_out": self.held_out, "swept": self.swept,
            "lines": [{**asdict(line), "knobs": dict(line.knobs)} for line in self.lines],
        }  # fmt: skip


def methods_of(names: Sequence[str]) -> list[str]:
    """Returns the methods with these names, all of them where none is given.

    Raises:
        LookupError: There is no such method.
    """
    known = [OURS, *PEERS]
    if unknown := sorted(set(names) - set(known)):
        raise LookupError(f"no method {', '.join(unknown)}; there are {', '.join(known)}")
    return [name for name in known if not names or name in names]


def compare(
    pipe: Any,
    call: Call,
    calibration: Sequence[Prompt],
    held_out: Sequence[Prompt],
    budgets: Sequence[float],
    *,
    methods: Sequence[str] = (),
    sweep_on: int = 8,
    batch_size: int = 1,
    fit_batch: int = 1,
    store: Store | None = None,
    progress: Progress = lambda stage, done, of: None,
) -> Comparison:
    """Measures our schedules and other methods at the same budgets.

    Arguments:
        pipe: A diffusers pipeline; it is not changed.
        call: How to call it in full.
        calibration: Prompts that schedules are fitted on, and settings of other methods chosen on.
        held_out: Prompts that everything is measured on.
        budgets: Fractions of the denoiser calls.
        methods: Names of methods; none means all.
        sweep_on: Try settings on at most this many calibration prompts.
        batch_size: Prompts in a run. Some methods decide for a batch, and do worse on large ones.
        fit_batch: Prompts in a run while our schedules are fitted.
        store: Where profiles are kept.
        progress: Told the stage, what is done and of how much.
    """
    names = methods_of(methods)
    allowed = {budget: calls_for(call.steps, budget) for budget in budgets}
    own, schedules, plans = twin(pipe), dict[float, Schedule](), dict[int, list[int]]()
    if OURS in names:
        given = measure(pipe, call, calibration, batch_size=fit_batch, store=store, progress=progress)
        schedules = _schedules(pipe, call, calibration, given, allowed, fit_batch, progress)
        for budget, schedule in schedules.items():
            policy = schedule.rules[0].policy
            assert isinstance(policy, Plan)
            plans[allowed[budget]] = policy.steps(schedule.grid.times)
    case = Case(own, call, tuple(allowed.values()), calibration[:sweep_on], plans)
    bench = Bench(case, held_out, len(calibration), batch_size, progress)
    lines = [bench.line("full run", 1.0, bench.full, {}, 0)]
    for budget, schedule in list(schedules.items()):
        trial = bench.measured(f"{OURS} {budget:g}", call, Runner(schedule, False, 0))
        line = bench.line(OURS, budget, trial, {"plan": plans[allowed[budget]]}, 0)
        lines.append(line)
        schedules[budget] = with_evidence(schedule, line, allowed[budget], len(held_out))
    for name in names:
        if name != OURS:
            lines += bench.lines(PEERS[name], allowed)
    order = {budget: place for place, budget in enumerate([1.0, *budgets])}
    lines.sort(key=lambda line: order[line.budget])
    return Comparison(call.steps, len(held_out), len(case.prompts), lines, bench.images, schedules)


def with_evidence(schedule: Schedule, line: Line, calls: int, prompts: int) -> Schedule:
    """Returns the schedule with what the comparison measured of it."""
    steps = len(schedule.grid.times)
    assert line.psnr is not None
    evidence = Evidence(
        prompts=f"{prompts} held-out", n=prompts, calls=(calls, steps), psnr=line.psnr, speed=steps / calls
    )
    return schedule.model_copy(update={"evidence": evidence})


def _schedules(
    pipe: Any, call: Call, prompts: Sequence[Prompt], given: Measurement, allowed: Mapping[float, int],
    batch_size: int, progress: Progress,
) -> dict[float, Schedule]:  # fmt: skip
    return {
        budget: fitted(pipe, call, prompts, given, calls, batch_size=batch_size, progress=progress)
        for budget, calls in allowed.items()
    }
