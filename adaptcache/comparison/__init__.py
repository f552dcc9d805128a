"""Compares schedules with other methods: same prompts, noise, grid and dtype, in one process.

Every method is given its best chance. All its settings are tried on calibration prompts, and for each
budget the best one that stays at or below it is measured on held-out prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from ..calibration.calibrate import calls_for
from ..profiling.measure import Progress, silent
from ..profiling.reference import twin
from ..runs import Call, Prompt
from ..schedule.schedule import Schedule
from .baselines import PEERS
from .baselines.base import Case
from .bench import Bench
from .compare import OURS, Fitted, fit_ours, measure_ours, plan_of
from .line import Cost, Line
from .scorer import Shows
from .solution import no_solution

__all__ = ["OURS", "Comparison", "Cost", "Line", "compare", "methods_of"]


@dataclass(frozen=True)
class Comparison:
    """The lines of all methods, and the images behind them.

    Arguments:
        steps: Steps of the full run.
        held_out: Prompts everything was measured on.
        swept: Calibration prompts the settings were tried on.
        lines: One for each budget and method.
        costs: What each method cost before its first use.
        left_out: Measures that were not taken, and why.
        images: Decoded images of the full run, under "full run", and of each method and budget.
        schedules: Our schedules, by budget.
    """

    steps: int
    held_out: int
    swept: int
    lines: list[Line]
    costs: list[Cost]
    left_out: dict[str, str]
    images: dict[str, list[np.ndarray]]
    schedules: dict[float, Schedule]

    def data(self) -> dict[str, Any]:
        """Returns all numbers as plain values."""
        return {
            "steps": self.steps, "held_out": self.held_out, "swept": self.swept,
            "lines": [{**asdict(line), "knobs": dict(line.knobs)} for line in self.lines],
            "costs": [asdict(cost) for cost in self.costs], "left_out": self.left_out,
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
    finer: int = 0,
    shows: Shows | None = None,
    progress: Progress = silent,
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
        batch_size: Prompts in a run. Methods that decide during the run have one, whatever this says.
        finer: Also compare with a run of so many times the steps; 0 does not.
        shows: Tells which share of images show what their captions say.
        progress: Told the stage, what is done and of how much.
    """
    names = methods_of(methods)
    allowed = {budget: calls_for(call.steps, budget) for budget in budgets}
    fits, profiled = Fitted(), {name for name in names if name != OURS and PEERS[name].profiled}
    if OURS in names or profiled:
        ours = allowed if OURS in names else {}
        fits = fit_ours(pipe, call, calibration, ours, batch_size=batch_size, progress=progress)
    plans = {allowed[budget]: plan_of(schedule) for budget, schedule in fits.schedules.items()}
    case = Case(twin(pipe), call, tuple(allowed.values()), calibration[:sweep_on], plans, fits.profile)
    bench = Bench(case, held_out, len(calibration), batch_size, progress, shows)
    left_out = {}
    if finer and (why := no_solution(case.pipe.scheduler)):
        left_out["exact"] = why
    elif finer:
        bench.many_steps(finer)
    lines, costs, schedules = measure_ours(bench, fits)
    lines.insert(0, bench.line("full run", 1.0, bench.full, call, None))
    for name in names:
        if name != OURS:
            found, cost = bench.lines(PEERS[name], allowed)
            lines += found
            costs += [with_profile(cost, bench, fits) if name in profiled else cost] if cost else []
    order = {budget: place for place, budget in enumerate([1.0, *budgets])}
    lines.sort(key=lambda line: order[line.budget])
    return Comparison(
        call.steps, len(held_out), len(case.prompts), lines, costs, left_out, bench.images, schedules
    )


def with_profile(cost: Cost, bench: Bench, fits: Fitted) -> Cost:
    """Returns a cost with that of the profile the method was fitted to."""
    profile = {stage: work / bench.call_work for stage, work in fits.profiling.items()}
    return replace(cost, calibration=profile | cost.calibration)
