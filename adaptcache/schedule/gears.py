"""Which gear of a schedule is followed: the user's, or the one that the run chooses."""

from ..errors import ScheduleError
from ..policies.gears import Gears
from ..policies.plan import Plan
from .schedule import Schedule


def resolve_gear(schedule: Schedule, gear: int | None, guard: bool = False) -> tuple[Schedule, int]:
    """Returns the schedule as it is to be run, and the gear of runs in which none is chosen.

    Arguments:
        schedule: As it was fitted.
        gear: The gear to stay in, negative ones counted from the end; None leaves it to the policy.
        guard: Whether to compare innovations with their bands.

    Raises:
        LookupError: There is no such gear.
        ScheduleError: The schedule has nothing that the guard could look at.
    """
    rule = schedule.rules[0]
    policy = rule.policy
    chooses = rule.chooses and gear is None
    # On another grid nothing is known of the prompt: a schedule that chooses is safest in its slowest gear.
    number = schedule.check_gear(-1 if chooses else gear or 0)
    if guard and not rule.guarded:
        raise ScheduleError(
            f"{schedule.name} has nothing for the guard to look at; `adaptcache calibrate` writes that"
        )
    if guard:
        assert isinstance(policy, Plan)
        policy = policy.model_copy(update={"guard": True}) if chooses else Gears.staying(policy, number, True)
    elif isinstance(policy, Gears) and not chooses:
        policy = Plan(gears=policy.gears)
    if policy is rule.policy:
        return schedule, number
    return schedule.model_copy(update={"rules": (rule.model_copy(update={"policy": policy}),)}), number
