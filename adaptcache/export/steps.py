"""Which steps a schedule computes, on its own grid or another."""

from __future__ import annotations

import numpy as np

from ..clock import Step
from ..drive import driven
from ..errors import ScheduleError
from ..schedule import Schedule

__all__ = ["computed_steps", "moved"]


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
    schedule, gear = driven(schedule, gear, guard=False)  # exported is one plan, not the choice among them
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
