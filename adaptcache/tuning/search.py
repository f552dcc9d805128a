"""The search: trials with numbered slots on an optuna study, by one worker or many, killed at any moment.

A slot is the place of a trial in the search. The trial of a worker that died is failed, which leaves its slot
open, and whoever comes next proposes for it: the same candidate, as draws depend on the slot and on what
came before it. So nothing is lost, and nothing is counted twice.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from ..calibrate import Progress
from .aims import aims
from .bench import Bench
from .candidate import Candidate
from .proposals import Proposer, Seen
from .race import WORSE, behind, best, worth
from .storage import alive, heartbeats, optuna, worker
from .target import Target

__all__ = ["Search"]

PAUSE = 0.5  # seconds until the other workers are asked again


class Dropped(Exception):
    """A trial that is not to be made: another one is the same, or has its slot."""


@dataclass
class Search:
    """A search on a study.

    Arguments:
        study: Of optuna.
        bench: What trials are made on.
        proposer: Of candidates.
        target: What is asked for.
        choices: The numbers of calls that may be tried.
        trials: How many trials are made in all, by all workers, now and before.
        deadline: When no trial is begun any more, on the monotonic clock.
        progress: Told the stage, what is done and of how much.
    """

    study: Any
    bench: Bench
    proposer: Proposer
    target: Target
    choices: Sequence[int]
    trials: int
    deadline: float
    progress: Progress
    exhausted: bool = field(default=False, init=False)

    def run(self) -> None:
        """Makes trials until all there should be are finished, or the time is over."""
        while time.monotonic() < self.deadline:
            self.bury()
            trials = self.live()
            self.progress("trials", len(self.finished()), self.trials)
            waiting = [trial for trial in trials if trial.state.name == "WAITING"]
            if not waiting and not (self.exhausted or not self.enqueue(trials)):
                waiting = [trials]
            if waiting:
                self.attempt()
            elif any(self.lives(trial) for trial in trials):
                time.sleep(PAUSE)  # it may die, and then its slot is open
            else:
                return

    def attempt(self) -> None:
        """Makes one trial; SQLite may give it to two workers at once, and the first to finish counts."""
        try:
            self.study.optimize(self.objective, n_trials=1, catch=(Dropped,))
        except optuna().exceptions.UpdateFinishedTrialError:
            return
        except ValueError as error:
            if not re.match(r"Cannot tell a (COMPLETE|PRUNED|FAIL) trial", str(error)):
                raise

    def live(self) -> list[Any]:
        """Returns the trials that have a slot and did not fail."""
        known = self.study.get_trials(deepcopy=False)
        return [trial for trial in known if trial.state.name != "FAIL" and "slot" in trial.user_attrs]

    def bury(self) -> None:
        """Fails the trials of workers that are no more."""
        heartbeats(self.study)
        for trial in self.study.get_trials(deepcopy=False):
            if trial.state.name == "RUNNING" and alive(trial.user_attrs.get("worker", "")) is False:
                state = optuna().trial.TrialState.FAIL
                with suppress(optuna().exceptions.UpdateFinishedTrialError):  # another one was quicker
                    self.study.tell(trial.number, state=state, skip_if_finished=True)

    def lives(self, trial: Any) -> bool:
        """Whether somebody works on a trial."""
        return trial.state.name == "RUNNING" and alive(trial.user_attrs.get("worker", "")) is not False

    def finished(self, below: int | None = None) -> list[Seen]:
        """Returns the finished trials, in the order of their slots, up to one."""
        end = self.trials if below is None else below
        found = {}
        for trial in self.live():
            if trial.state.name in ("COMPLETE", "PRUNED") and trial.user_attrs["slot"] < end:
                found[trial.user_attrs["slot"]] = seen_of(trial)
        return [found[slot] for slot in sorted(found)]

    def enqueue(self, trials: Sequence[Any]) -> bool:
        """Enqueues a trial for the first open slot; False where there is none, or nothing to try."""
        slots = {trial.user_attrs["slot"] for trial in trials}
        slot = next(number for number in range(len(slots) + 1) if number not in slots)
        if slot >= self.trials:
            return False
        before = self.finished(slot)
        taken = {candidate_of(trial).key for trial in trials}
        shares = aims(self.target, self.choices, self.proposer, before, taken)
        candidate = self.proposer.propose(slot, before, taken, shares)
        if candidate is None:
            self.exhausted = True
            return False
        about = {"slot": slot, "candidate": candidate.model_dump(mode="json"), "worker": worker(),
                 "origin": candidate.origin}  # fmt: skip
        self.study.enqueue_trial(candidate.params(), user_attrs=about)
        return True

    def objective(self, trial: Any) -> tuple[float, float]:
        """Makes a trial; returns the calls, and what the images are worth."""
        if "slot" not in trial.user_attrs:
            raise Dropped("another worker took what was waiting")
        trial.set_user_attr("worker", worker())
        candidate, slot = candidate_of(trial), trial.user_attrs["slot"]
        for other in self.live():
            same = candidate_of(other).key == candidate.key or other.user_attrs["slot"] == slot
            if other.number < trial.number and same:
                raise Dropped(f"trial {other.number} is the same")
        candidate.suggested(trial, self.proposer.profile.steps)
        psnr = self.evaluated(trial, candidate, self.finished(slot))
        return float(candidate.calls), worth(psnr, self.target)

    def evaluated(self, trial: Any, candidate: Candidate, before: Sequence[Seen]) -> list[float]:
        """Returns the decibels of all select prompts, or gives up: `TrialPruned`."""

        def give_up(why: str) -> Exception:
            trial.set_user_attr("why", why[:500])
            return optuna().TrialPruned(why)  # type: ignore[no-any-return]

        leader, psnr = best(before, candidate.calls), list[float]()
        first = candidate.key in {one.key for one in self.proposer.warm(candidate.calls)}
        try:
            rule, error = self.bench.rule(candidate)
            if error is not None:
                trial.set_user_attr("error", error)
                if error > WORSE * (least := least_error(before, candidate.calls, error)):
                    raise give_up(f"its final latents are {error / least:.1f} times as wrong")
            for psnr in self.bench.judged(rule):
                trial.set_user_attr("psnr", psnr)
                short = leader is not None and len(psnr) < len(leader.psnr)
                if leader and short and not first and behind(psnr, leader.psnr):
                    raise give_up(f"worse than trial {leader.slot} after {len(psnr)} prompts")
        except ValueError as failure:  # its runs end in nothing finite
            raise give_up(str(failure)) from None
        return psnr


def least_error(before: Sequence[Seen], calls: int, default: float) -> float:
    """Returns the least error of the final latents with so many calls."""
    known = [one.error for one in before if one.error is not None and one.candidate.calls == calls]
    return min(known, default=default)


def candidate_of(trial: Any) -> Candidate:
    """Returns what a trial tries."""
    return Candidate.model_validate(trial.user_attrs["candidate"])


def seen_of(trial: Any) -> Seen:
    """Returns a finished trial as the proposer takes it."""
    about = trial.user_attrs
    value = trial.values[1] if trial.state.name == "COMPLETE" else None
    return Seen(about["slot"], candidate_of(trial), value, tuple(about.get("psnr", ())), about.get("error"))
