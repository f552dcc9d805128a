"""TeaCache's polynomial, as the engines that have a TeaCache take it.

Such an engine takes no mask. But a constant polynomial adds the same distance at every step, whatever the
input, so that the threshold is crossed every n steps.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

from ...errors import ScheduleError
from ...limits import STEPS
from ...policies.polynomial import Polynomial
from ...policies.uniform import Uniform
from ...schedule.schedule import Schedule
from .mask import Exported, Format, Settings, reuse

COUNT = 5  # of a polynomial of degree 4: engines take no other
FITTED_ON = ("the model that the polynomial was fitted on",)


def constant(interval: int, threshold: float) -> list[float]:
    """Returns the coefficients, highest order first, that cross a threshold every `interval` steps."""
    return [0.0, 0.0, 0.0, 0.0, threshold / (interval - 0.5)]  # half a step: sums are not exact


def read_polynomial(coefficients: Sequence[float], threshold: float | None, last: bool = False) -> Settings:
    """Returns the settings of a TeaCache: every n-th step where its polynomial is constant.

    Arguments:
        coefficients: The coefficients, highest order first.
        threshold: The distance at which a step is computed.
        last: Whether the engine always computes the last step.
    """
    if threshold is None:
        raise ScheduleError("coefficients without a threshold: add 'rel_l1_thresh'")
    policy = Polynomial(coefficients=tuple(coefficients), threshold=threshold, on="modulated")
    *others, each = policy.coefficients
    if any(others):
        return reuse(policy, "blocks")
    interval = min(max(1, math.ceil(policy.threshold / each)), STEPS) if each > 0 else STEPS
    return reuse(Uniform(interval=interval, cool_down=int(last)))


def write_with(form: Format, schedule: Schedule) -> Exported:
    """Returns the coefficients and the threshold of a schedule that decides by a polynomial, for an engine.

    Raises:
        ScheduleError: The polynomial is not one of the first block's modulated input, or has too many terms.
    """
    policy = schedule.rules[0].policy
    assert isinstance(policy, Polynomial) and form.write_polynomial
    if policy.on != "modulated":
        raise ScheduleError(
            f"the polynomial of {schedule.name} looks at the {policy.on}, that of {form.name} at the first "
            "block's modulated input: export one that was fitted on that, or a schedule with a plan"
        )
    if len(policy.coefficients) > COUNT:
        raise ScheduleError(f"{form.name} takes {COUNT} coefficients, {schedule.name} has {len(policy.coefficients)}")
    lost = ["how it was warmed up and limited: engines have their own rules for the first and last steps"]
    if policy.clamp:
        low, high = policy.clamp
        lost.append(f"the range of the fit ({low:.3g} to {high:.3g}): engines go on outside")
    missing = COUNT - len(policy.coefficients)
    written = form.write_polynomial(policy, [0.0] * missing + list(policy.coefficients))
    return replace(written, lost=(*lost, *written.lost))
