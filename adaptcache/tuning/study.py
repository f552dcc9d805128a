"""The optuna study: where trials are kept, what the next one tries, when one is pruned, and who makes it.

Workers share a study by its storage. The trial of a worker that died is failed and queued again by optuna's
heartbeats; a worker that finds an earlier trial like its own drops it. So each candidate is counted once.
"""

from __future__ import annotations

import json
import math
import re
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from ..runs import PromptSet
from .candidate import Candidate, Proposer, leaders
from .evaluator import LEAST, CandidateEvaluator, worth

try:
    import optuna
    from filelock import FileLock
    from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
    from optuna.storages import InMemoryStorage, JournalStorage, RDBStorage, fail_stale_trials
    from optuna.storages import RetryHeartbeatStaleTrialCallback as Retry
    from optuna.storages._heartbeat import BaseHeartbeat
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
    from optuna.study import MaxTrialsCallback
    from optuna.trial import TrialState
except ImportError:
    raise ImportError("tuning needs optuna 4.9 or newer: pip install 'adaptcache-diffusers[tune]'") from None

BEAT, GRACE = 15, 60  # seconds between the signs of life of a trial, and how long they may be missing
DRAWING = timedelta(seconds=10)  # the longest that parameters are drawn
PAUSE = 0.5  # seconds until the trials of other workers are looked at again
WAIT = 60  # seconds for the lock of SQLite
MEMORY = ("sqlite://", "sqlite:///:memory:")
FINISHED = ("COMPLETE", "PRUNED")
SIGNIFICANT = 0.1  # p-value of the paired test that prunes a trial
WORSE = 1.25  # times the error of the best final latents: 1 dB

optuna.logging.set_verbosity(optuna.logging.ERROR)


class Dropped(Exception):
    """A trial that is not to be made."""


@contextmanager
def quiet() -> Iterator[None]:
    """Hides optuna's warnings about what it calls experimental."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


class Journal(JournalStorage, BaseHeartbeat):  # type: ignore[misc]
    """A journal file with heartbeats, which optuna has for databases only; clocks must agree to seconds."""

    def record_heartbeat(self, trial_id: int) -> None:
        with suppress(UpdateFinishedTrialError):  # failed as stale meanwhile
            self.set_trial_system_attr(trial_id, "heartbeat", time.time())

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        running = self.get_all_trials(study_id, deepcopy=False, states=(TrialState.RUNNING,))
        since = time.time() - GRACE
        return [trial._trial_id for trial in running if trial.system_attrs.get("heartbeat", math.inf) < since]

    def get_heartbeat_interval(self) -> int:
        return BEAT

    def get_heartbeat_stale_trial_callback(self) -> Retry:
        return Retry()


def open_storage(where: str | Path | None, folder: Path | None) -> Any:
    """Opens the URL of a database or the path of a journal file; by default SQLite in a folder, or memory.

    Raises:
        ValueError: It cannot be opened.
    """
    url = f"sqlite:///{folder / 'tuning.db'}" if where is None and folder else str(where or MEMORY[0])
    if url in MEMORY:
        return InMemoryStorage()
    local = url.startswith("sqlite:///") or "://" not in url
    path, lock = Path(url.removeprefix("sqlite:///").split("?")[0]), nullcontext()
    try:
        if local:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(f"{path}.tables")  # two workers that begin at once would both make the tables
        if "://" not in url:
            first = path.open("rb").readline(2**16) if path.exists() else b""
            if first and not (first.startswith(b"{") and "op_code" in json.loads(first)):
                raise ValueError("it is some other file; a database has a URL (sqlite:///...)")
            return Journal(JournalFileBackend(url, lock_obj=JournalFileOpenLock(url)))
        wait = {"connect_args": {"timeout": WAIT}} if local else {}
        with quiet(), lock:
            return RDBStorage(
                url, wait, heartbeat_interval=BEAT, grace_period=GRACE, heartbeat_stale_trial_callback=Retry()
            )
    except Exception as error:  # of a driver, a network, a file system
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        shown = url.split("://")[0] + "://..." if "@" in url else url  # no password
        raise ValueError(f"cannot open the storage {shown}: {reason}") from None


def open_study(storage: Any, name: str, resume: bool) -> Any:
    """Opens a study, or creates it.

    Raises:
        ValueError: It has trials already, and they are not to be resumed.
    """
    study = optuna.create_study(storage=storage, study_name=name, load_if_exists=True, direction="maximize")
    if not resume and (count := len(study.get_trials(deepcopy=False))):
        raise ValueError(
            f"{count} trials of this search are in the storage, in the study {name}: continue them "
            "(--resume, resume=True), or take another seed"
        )
    return study


def live_trials(study: Any, *states: str) -> list[Any]:
    """Returns the trials that did not fail and whose parameters are drawn: of some states, or all."""
    trials = study.get_trials(deepcopy=False)
    # A trial that is queued again has the number of the failed one.
    drawn = [
        one
        for one in trials
        if one.user_attrs.get("drawn", -1) >= (one.number if one.state.name == "RUNNING" else 0)
    ]
    return [one for one in drawn if (one.state.name in states if states else one.state.name != "FAIL")]


@dataclass
class MoveSampler(optuna.samplers.BaseSampler):  # type: ignore[misc]
    """Draws the parameters of a trial from a proposer."""

    proposer: Proposer
    exhausted: bool = False
    _drawn: dict[int, dict[str, Any]] = field(default_factory=dict, repr=False)

    def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
        return {}

    def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Any]:
        return {}

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
        if trial.number not in self._drawn:
            candidate = self.proposer.propose(trial.number, live_trials(study))
            if candidate is None:
                self.exhausted = True
                study.stop()
                raise Dropped("everything was tried")
            self._drawn[trial.number] = candidate.params
        # Where a worker died while these were drawn, those that are stored belong to another candidate.
        return self._drawn[trial.number].get(param_name, 1)


class SameCallsPruner(optuna.pruners.BasePruner):  # type: ignore[misc]
    """`WilcoxonPruner` against the best trial of as many calls, on the prompts that both were judged by."""

    def prune(self, study: Any, trial: Any) -> bool:
        best = leaders(study.get_trials(deepcopy=False), trial.params["calls"])
        if not best:
            return False
        shared = {prompt: best[0].intermediate_values[prompt] for prompt in trial.intermediate_values}
        rivals, value = optuna.create_study(direction="maximize"), sum(shared.values()) / len(shared)
        rivals.add_trial(optuna.create_trial(value=value, intermediate_values=shared))
        with quiet():
            pruner = optuna.pruners.WilcoxonPruner(p_threshold=SIGNIFICANT, n_startup_steps=LEAST)
        return bool(pruner.prune(rivals, trial))


@dataclass
class Search:
    """A search on a study, by all workers that share its storage.

    Arguments:
        study: Of optuna.
        evaluator: What trials are made on.
        proposer: Of candidates.
        trials: How many trials are made in all, now and before.
        deadline: When no trial is begun any more, on the monotonic clock.
        eval_prompts: Held-out prompts to report on.
        groups: The subject of each of them.
        name: What the schedule is called.
    """

    study: Any
    evaluator: CandidateEvaluator
    proposer: Proposer
    trials: int
    deadline: float
    eval_prompts: PromptSet
    groups: Sequence[Any] = ()
    name: str | None = None

    def __post_init__(self) -> None:
        self.study.sampler, self.study.pruner = MoveSampler(self.proposer), SameCallsPruner()
        self.steps = self.proposer.profile.steps

    @property
    def finished(self) -> list[Any]:
        """The finished trials."""
        return live_trials(self.study, *FINISHED)

    def run(self) -> None:
        """Makes trials until there are as many as asked for, everything was tried, or the time is over.

        Raises:
            RuntimeError: The storage fails.
        """
        try:
            while (left := self.deadline - time.monotonic()) > 0 and self.work(left):
                pass
        except StorageInternalError as error:
            reason = str(error.__cause__ or error).splitlines()[0][:200]
            raise RuntimeError(
                f"the storage of the trials failed: {reason}; resume when it is back"
            ) from None

    def work(self, left: float) -> bool:
        """Makes trials, or waits for those of other workers; False where there is nothing more to do."""
        with quiet():
            fail_stale_trials(self.study)
        running, waiting = live_trials(self.study, "RUNNING"), live_trials(self.study, "WAITING")
        if len(self.finished) + len(running) < self.trials and (waiting or not self.study.sampler.exhausted):
            done = MaxTrialsCallback(self.trials, [TrialState[state] for state in FINISHED])
            try:
                self.study.optimize(
                    self.objective, timeout=None if math.isinf(left) else left, catch=(Dropped,),
                    callbacks=[done, lambda *_: self.report()],
                )  # fmt: skip
            except (UpdateFinishedTrialError, ValueError) as error:
                # This process was asleep, and taken for dead: another worker makes its trial.
                if not re.search(r"Cannot tell a|not updatable|already finished", str(error)):
                    raise
            return True
        time.sleep(min(PAUSE, left) if running else 0)  # a worker may die: then its trial is made here
        return bool(running)

    def report(self) -> None:
        """Reports how many trials are finished."""
        self.evaluator.setup.progress("trials", len(self.finished), self.trials)

    def objective(self, trial: Any) -> float:
        """Makes a trial; returns what its images are worth."""
        try:
            candidate = Candidate.suggest(trial, self.steps)
            trial.set_user_attr("drawn", trial.number)
            self.check_wanted(trial, candidate)
            return worth(self.judge(trial, candidate), self.proposer.target)
        except (Dropped, optuna.TrialPruned, ValueError) as reason:
            trial.set_user_attr("why", str(reason)[:500])
            if isinstance(reason, ValueError):  # its runs end in nothing finite
                raise optuna.TrialPruned(str(reason)) from None
            raise

    def check_wanted(self, trial: Any, candidate: Candidate) -> None:
        """Raises Dropped where other workers make enough trials, or the same one."""
        while any(drawing(other) and other.number < trial.number for other in self.study.get_trials()):
            time.sleep(PAUSE / 10)
        before = [one for one in live_trials(self.study) if one.number < trial.number]
        if len(before) >= self.trials:
            self.study.stop()
            raise Dropped("there are enough trials")
        if same := [one.number for one in before if Candidate.suggest(one, self.steps) == candidate]:
            raise Dropped(f"trial {same[0]} is the same")

    def judge(self, trial: Any, candidate: Candidate) -> list[float]:
        """Returns the decibels of all select prompts.

        Raises:
            optuna.TrialPruned: It is clearly behind; what `calibrate` chooses from is judged to the end.
        """
        calls, values = len(candidate.plan), list[float]()
        may_prune = candidate not in self.proposer.starts(calls)
        rule, error = self.evaluator.fit(candidate)
        errors = [one.user_attrs["error"] for one in leaders(self.finished, calls)]
        trial.set_user_attr("error", error)
        if may_prune and error > WORSE * min(errors, default=math.inf):
            raise optuna.TrialPruned(f"final latents {error / min(errors):.1f} times as wrong as the best")
        for rung in self.evaluator.judge(rule):
            for value in rung:
                trial.report(value, len(values))
                values.append(value)
            if may_prune and len(values) < len(self.evaluator.truth) and trial.should_prune():
                raise optuna.TrialPruned(f"worse than the best after {len(values)} prompts")
        return values


def drawing(trial: Any) -> bool:
    """Whether another worker is drawing a trial's parameters; after some seconds it has died."""
    undrawn = trial.state == TrialState.RUNNING and trial.user_attrs.get("drawn") != trial.number
    return undrawn and datetime.now() - trial.datetime_start < DRAWING
