"""One trial: fitted, judged in rungs, and given up as soon as it is clearly behind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .bench import Bench
from .candidate import Candidate
from .proposals import Proposer
from .race import Seen, behind, best, hopeless
from .storage import optuna

__all__ = ["candidate_of", "evaluated", "seen_of"]


def evaluated(trial: Any, bench: Bench, proposer: Proposer, before: Sequence[Seen]) -> list[float]:
    """Returns the decibels of all select prompts.

    Arguments:
        trial: Of optuna; what was measured is kept with it.
        bench: What the trial is made on.
        proposer: Knows what `calibrate` would choose from: that is judged to the end.
        before: The finished trials with lower slots.

    Raises:
        optuna.TrialPruned: It was given up.
    """

    def give_up(why: str) -> Exception:
        trial.set_user_attr("why", why[:500])
        return optuna().TrialPruned(why)  # type: ignore[no-any-return]

    candidate, psnr = candidate_of(trial), list[float]()
    leader = best(before, candidate.calls)
    first = candidate.key in {one.key for one in proposer.warm(candidate.calls)}
    try:
        rule, error = bench.rule(candidate)
        if error is not None:
            trial.set_user_attr("error", error)
        if not first and (why := hopeless(error, before, candidate.calls)):
            raise give_up(why)
        for psnr in bench.judged(rule):
            trial.set_user_attr("psnr", psnr)
            short = leader is not None and len(psnr) < len(leader.psnr)
            if leader and short and not first and behind(psnr, leader.psnr):
                raise give_up(f"worse than trial {leader.slot} after {len(psnr)} prompts")
    except ValueError as failure:  # its runs end in nothing finite
        raise give_up(str(failure)) from None
    return psnr


def candidate_of(trial: Any) -> Candidate:
    """Returns what a trial tries."""
    return Candidate.model_validate(trial.user_attrs["candidate"])


def seen_of(trial: Any) -> Seen:
    """Returns a finished trial as the proposer takes it."""
    about = trial.user_attrs
    value = trial.values[1] if trial.state.name == "COMPLETE" else None
    return Seen(about["slot"], candidate_of(trial), value, tuple(about.get("psnr", ())), about.get("error"))
