"""Which gear of a schedule is followed: the user's, or the one that the run chooses."""

from __future__ import annotations

from ..errors import ScheduleError
from ..policies.gears import Gears
from ..policies.plan import Plan
from .schedule import Schedule

__all__ = ["resolve_gear"]


def checked_gear(schedule: Schedule, gear: int) -> int:
    """Returns the number of a gear, negative ones counted from the end."""
    policy = schedule.rules[0].policy
    gears = len(policy.gears) if isinstance(policy, Plan) else 1
    if not -gears <= gear < gears:
        raise LookupError(f"no gear {gear}: {schedule.name} has {gears} (0 to {gears - 1})")
    return gear % gears


def resolve_gear(schedule: Schedule, gear: int | None, guard: bool) -> tuple[Schedule, int]:
    """Returns the schedule as it is to be run, and the gear of runs in which none is chosen.

    Arguments:
        schedule: As it was fitted.
        gear: The gear to stay in; None leaves it to the policy.
        guard: Whether to compare innovations with their bands.

    Raises:
        LookupError: There is no such gear.
        ScheduleError: The schedule has nothing that the guard could look at.
    """
    rule = schedule.rules[0]
    policy = rule.policy
    chooses = isinstance(policy, Gears) and gear is None
    # On another grid nothing is known of the prompt: a schedule that chooses is safest in its slowest gear.
    number = checked_gear(schedule, -1 if chooses else gear or 0)
    if guard:
        if not isinstance(policy, Plan) or policy.watch is None:
            raise ScheduleError(
                f"{schedule.name} has nothing for the guard to look at; `adaptcache calibrate` writes that"
            )
        if isinstance(policy, Gears) and chooses:
            policy = policy.model_copy(update={"guard": True})
        else:
            policy = Gears.staying(policy, number, guard=True)
    elif isinstance(policy, Gears) and not chooses:
        policy = Plan(gears=policy.gears)
    if policy is rule.policy:
        return schedule, number
    return schedule.model_copy(update={"rules": (rule.model_copy(update={"policy": policy}),)}), number
