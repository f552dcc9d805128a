"""The search: trials with numbered slots on an optuna study, by one worker or many, killed at any moment.

A slot is the place of a trial in the search. The trial of a worker that died is failed, which leaves its slot
open, and whoever comes next proposes for it: the same candidate, as draws depend on the slot and on what
came before it. So nothing is lost, and nothing is counted twice.

The file is longer than ours are: taking, making and burying a trial are three sides of one protocol.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

from ..profiling.measure import Progress
from .aims import aims
from .bench import Bench
from .proposals import Proposer
from .race import Seen, worth
from .storage import alive, heartbeats, optuna, storage_failure, worker
from .target import Target
from .trial import candidate_of, evaluated, seen_of

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
        turnstile: A context that one worker at a time is in, to take a trial.
    """

    study: Any
    bench: Bench
    proposer: Proposer
    target: Target
    choices: Sequence[int]
    trials: int
    deadline: float
    progress: Progress
    turnstile: Any
    exhausted: bool = field(default=False, init=False)

    def run(self) -> None:
        """Makes trials until all there should be are finished, or the time is over.

        Raises:
            RuntimeError: The storage fails.
        """
        try:
            while time.monotonic() < self.deadline and self.step():
                self.progress("trials", len(self.finished()), self.trials)
        except Exception as error:
            if reason := storage_failure(error):
                message = f"the storage of the trials failed: {reason}; resume when it is back"
                raise RuntimeError(message) from None
            raise

    def step(self) -> bool:
        """Makes one trial, or waits for those of others; False where there is nothing more to do."""
        self.taking = ExitStack()
        with self.taking:
            self.taking.enter_context(self.turnstile)
            self.bury()
            trials = self.live()
            waiting = any(trial.state.name == "WAITING" for trial in trials)
            if waiting or (not self.exhausted and self.enqueue(trials)):
                self.attempt()
                return True
        if any(self.lives(trial) for trial in trials):
            time.sleep(PAUSE)  # it may die, and then its slot is open
            return True
        return False

    def attempt(self) -> None:
        """Makes one trial. Of a worker that was thought dead meanwhile, say asleep, it does not count."""
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

    def failed(self, slot: int) -> list[Any]:
        """Returns the trials of a slot whose workers are no more."""
        known = self.study.get_trials(deepcopy=False)
        return [one for one in known if one.state.name == "FAIL" and one.user_attrs.get("slot") == slot]

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
        failed = [candidate_of(trial) for trial in self.failed(slot)]
        again = [candidate for candidate in failed if candidate.key not in taken]
        candidate = again[0] if again else self.proposer.propose(slot, before, taken, shares)
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
        self.taking.close()  # the trial is ours: the next worker may take one
        candidate, slot = candidate_of(trial), trial.user_attrs["slot"]
        for other in self.live():
            same = candidate_of(other).key == candidate.key or other.user_attrs["slot"] == slot
            if other.number < trial.number and same:
                raise Dropped(f"trial {other.number} is the same")
        candidate.suggested(trial, self.proposer.profile.steps)
        psnr = evaluated(trial, self.bench, self.proposer, self.finished(slot))
        return float(candidate.calls), worth(psnr, self.target)
