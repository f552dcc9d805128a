"""How many calls the next trial makes."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from .bench import Bench
from .proposals import Proposer
from .race import Seen, best
from .target import Target

__all__ = ["aims", "calibrated"]

ABOVE = (1, 2, 3, 5)  # calls more than the fewest that reach a quality


def aims(
    target: Target, choices: Sequence[int], proposer: Proposer, before: Sequence[Seen], taken: Collection[str]
) -> dict[int, float]:
    """Returns how often each number of calls is to be tried next.

    First comes what `calibrate` would choose from, for one number of calls after the other. For a quality
    these numbers are found by bisection; then some a little above get a trial each, as a certificate asks
    for more than the prompts that select; then the fewest calls that reach it are tried, and one less.

    Arguments:
        target: What is asked for.
        choices: The numbers of calls that may be tried, rising.
        proposer: Of candidates.
        before: The finished trials, in order.
        taken: Keys of candidates that were proposed.
    """
    if target.min_psnr is None:
        for calls in choices:
            if proposer.pending(calls, taken):
                return {calls: 1.0}
        return dict.fromkeys(choices, 1.0)
    low, high = -1, len(choices)  # positions: the most calls that miss the target, the fewest that reach it
    for position, calls in enumerate(choices):
        if leader := best(before, calls):
            if (leader.worth or 0.0) >= target.min_psnr:
                high = min(high, position)
            else:
                low = max(low, position)
    if low > high:  # more calls did worse: noise, or trials that are still to come
        low = high - 1
    if high - low > 1:
        return {choices[(low + high) // 2]: 1.0}
    tried = {one.candidate.calls for one in before}
    for calls in (choices[high + more] for more in ABOVE if high + more < len(choices)):
        if calls not in tried:
            return {calls: 1.0}
    around = {low: 0.6, high: 0.4}
    return {choices[position]: share for position, share in around.items() if 0 <= position < len(choices)}


def calibrated(seen: Sequence[Seen], proposer: Proposer, bench: Bench, calls: int) -> Seen | None:
    """Returns the trial of what `calibrate` would return: of the planner's plans the closest in the end.

    `calibrate` fits on all calibration prompts, so that is done here too: a trial fits on half of them, and
    may rank the plans otherwise.
    """
    keys = {candidate.key for candidate in proposer.warm(calls)}
    tried = [one for one in seen if one.candidate.key in keys and one.worth is not None]
    if len(tried) < 2:
        return tried[0] if tried else None
    tried.sort(key=lambda one: one.candidate.plan)  # as there, the first of equals
    return min(tried, key=lambda one: bench.rule(one.candidate, everything=True)[1] or 0.0)
