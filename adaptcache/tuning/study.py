"""The optuna study: where trials are kept, what the next one tries, when one is pruned, and who makes it.

Workers share a study by its storage, and draw parameters in turn, so that none draws what another one tries.
The trial of a worker that died is failed and queued again by optuna's heartbeats.
"""

import functools
import json
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from warnings import catch_warnings

import numpy as np

from ..cache import Cache
from ..files import check_writable, locate
from ..fitting.plan import move_call, plan_cost
from ..profile import Profile
from ..runs import PromptSet
from .evaluator import LEAST, MOVES, SPACE, Candidate, CandidateEvaluator, leaders
from .target import SearchOptions, Target

try:
    import optuna
    from filelock import FileLock
    from optuna.exceptions import UpdateFinishedTrialError
    from optuna.storages import RetryHeartbeatStaleTrialCallback as Retry
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
    from optuna.storages.journal._file import get_lock_file
    from optuna.trial import TrialState
except ImportError:
    raise ImportError("tuning needs optuna 4.9 or newer: pip install 'adaptcache-diffusers[tune]'") from None

BEAT, GRACE = 15, 60  # seconds between the signs of life of a trial, and how long they may be missing
PAUSE, DRAWING = 0.5, timedelta(seconds=10)  # until others are looked at again; the longest that they draw
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
SIGNIFICANT, WORSE = 0.1, 1.25  # p-value that prunes a trial; times the error of the best final latents: 1 dB
DRAWS, LEADERS, TRIES = 4, 3, 100  # plans that are sieved; parents of neighbours; draws until all count as tried
ABOVE = (1, 2, 3, 5)  # calls more than the fewest that reach a quality
EXPERIMENTAL: dict[str, Any] = {"action": "ignore", "category": optuna.exceptions.ExperimentalWarning}

optuna.logging.set_verbosity(optuna.logging.ERROR)


class Dropped(Exception):
    """A trial that is not to be made."""


class Journal(optuna.storages.JournalStorage, optuna.storages._heartbeat.BaseHeartbeat):
    """A journal file with heartbeats, which optuna has for databases only; clocks must agree to seconds."""

    def record_heartbeat(self, trial_id: int) -> None:
        with suppress(UpdateFinishedTrialError, OSError):  # failed as stale meanwhile; the trial says what is wrong
            self.set_trial_system_attr(trial_id, "heartbeat", time.time())

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        running = self.get_all_trials(study_id, deepcopy=False, states=(TrialState.RUNNING,))
        beats = {trial._trial_id: trial.system_attrs.get("heartbeat", math.inf) for trial in running}
        return [trial_id for trial_id, beat in beats.items() if time.time() - beat > GRACE]

    def get_heartbeat_interval(self) -> int:
        return BEAT

    def get_heartbeat_stale_trial_callback(self) -> Retry:
        return Retry()


class JournalFile(JournalFileBackend):
    """The file of a journal, from which the half line of a full disk or a killed worker is cut off."""

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
        with get_lock_file(self._lock), open(self._file_path, "r+b", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - 1))
            if file.read() not in (b"", b"\n"):
                file.seek(0)
                end = file.truncate(file.read().rfind(b"\n") + 1)
            file.seek(end)
            try:
                while lines:
                    lines = lines[file.write(lines) :]
                os.fsync(file.fileno())
            except OSError:
                file.truncate(end)
                raise


@contextmanager
def storing() -> Iterator[None]:
    """Raises in one line what a storage could not keep."""
    try:
        yield
    except (AssertionError, OSError, optuna.exceptions.StorageInternalError) as error:
        found: BaseException | None = error
        while isinstance(found, AssertionError):  # what optuna ends in where a trial cannot be told to have failed
            found = found.__context__
        if found is None:
            raise
        reason = str(found.__cause__ or found).splitlines()[0][:200]
        raise RuntimeError(f"the trials cannot be stored: {reason}; resume later") from None


def open_storage(where: str | Path | None, cache: Cache | None) -> Any:
    """Opens the URL of a database or the path of a journal file; by default SQLite in the cache or memory."""
    if where is None and cache is None:
        return optuna.storages.InMemoryStorage()
    url = str(where) if where or cache is None else f"sqlite:///{cache.folder / 'tuning.db'}"
    path, wait = locate(url.removeprefix("sqlite:///").split("?")[0]), dict[str, Any]()
    lock: Any = nullcontext()
    try:
        if "://" not in url or url.startswith("sqlite:///"):
            check_writable(path).parent.mkdir(parents=True, exist_ok=True)
        if "://" not in url:
            if path.exists() and path.read_bytes()[:10] not in (b"", b'{"op_code"'):
                raise ValueError("it is some other file; a database has a URL (sqlite:///...)")
            return Journal(JournalFile(str(path), JournalFileOpenLock(str(path))))
        if url.startswith("sqlite:///"):  # two workers that begin at once would both make the tables
            wait, lock = {"connect_args": {"timeout": 60}}, FileLock(f"{path}.lock")
        with catch_warnings(**EXPERIMENTAL), lock:
            return optuna.storages.RDBStorage(
                url, wait, heartbeat_interval=BEAT, grace_period=GRACE, heartbeat_stale_trial_callback=Retry()
            )
    except Exception as error:  # of a driver, a network, a file system
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        shown = url.split("://")[0] + "://..." if "@" in url else url  # no password
        raise ValueError(f"cannot open the storage {shown}: {reason}") from None


def open_study(name: str, options: SearchOptions, cache: Cache | None) -> Any:
    """Opens a study, or creates it; ValueError says that it has trials that are not to be resumed."""
    storage = open_storage(options.storage, cache)
    if options.resume and isinstance(storage, optuna.storages.InMemoryStorage):
        raise ValueError("nothing can be resumed from memory: give a storage, or a cache_dir")
    with storing():
        study = optuna.create_study(storage=storage, study_name=name, load_if_exists=True, direction="maximize")
    if not options.resume and (count := len(study.get_trials(deepcopy=False))):
        raise ValueError(
            f"{count} trials of this search are in the storage, in the study {name}: continue them "
            "(--resume, resume=True), or take another seed"
        )
    return study


def live_trials(study: Any, *states: TrialState) -> list[Any]:
    """Returns the trials of some states whose parameters are drawn; by default of all but the failed ones."""
    states = states or (TrialState.WAITING, TrialState.RUNNING, *FINISHED)
    return [trial for trial in study.get_trials(deepcopy=False, states=states) if is_drawn(trial)]


def is_drawn(trial: Any) -> bool:
    """Whether all parameters are drawn. A trial that is queued again has the number of the failed one."""
    number = trial.number if trial.state == TrialState.RUNNING else 0
    return bool(trial.user_attrs.get("drawn", -1) >= number)


@dataclass(eq=False)
class MoveSampler(optuna.samplers.RandomSampler):
    """Draws the plan that `calibrate` finds, then moves from the best trials, for some numbers of calls."""

    find: Callable[[int], tuple[int, ...]]  # that plan, for a number of calls
    profile: Profile
    target: Target
    choices: Sequence[int]
    trials: int
    seed: int

    def __post_init__(self) -> None:
        super().__init__(self.seed)
        self.drawn: dict[int, dict[str, Any]] = {}  # by number of the trial
        self.errors, self.exhausted = self.profile.errors, False
        self.find = functools.cache(self.find)

    def start(self, calls: int) -> Candidate:
        """Returns what is tried first."""
        return Candidate(self.find(calls))

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
        if trial.number not in self.drawn:
            self.drawn[trial.number] = self.draw(study, trial.number)
        # Where a worker died while these were drawn, those that are stored belong to another candidate.
        return self.drawn[trial.number].get(param_name, 1)

    def draw(self, study: Any, number: int) -> dict[str, Any]:
        """Returns the parameters of a trial, after those of the trials before it are drawn."""

        def draws(other: Any) -> bool:
            lives = datetime.now() - other.datetime_start < DRAWING
            return bool(other.number < number and not is_drawn(other) and lives)

        while any(map(draws, study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)))):
            time.sleep(PAUSE / 10)
        known = live_trials(study)
        enough = sum(one.number < number for one in known) >= self.trials
        if candidate := None if enough else self.propose(number, known):
            return candidate.params
        self.exhausted = not enough
        study.stop()
        raise Dropped("there are enough trials" if enough else "everything was tried")

    def propose(self, number: int, trials: Sequence[Any]) -> Candidate | None:
        """Returns what trial `number` tries after others; None where everything was tried."""
        rng, steps = np.random.default_rng([abs(self.seed), number]), self.profile.steps
        taken = {Candidate.suggest(trial, steps) for trial in trials}
        for calls in map(int, rng.permutation(self.next_calls(trials, taken))):
            if (start := self.start(calls)) not in taken:
                return start
            parents = [Candidate.suggest(trial, steps) for trial in leaders(trials, calls)[:LEADERS]] or [start]
            made = replace(parents[0], history=6, origin="history")  # nearly always better
            for _ in range(TRIES if calls < steps else 0):  # where nothing is skipped, all are one
                if made not in taken:
                    return made
                made = self.neighbour(parents[min(int(rng.geometric(0.6)), len(parents)) - 1], rng)
        return None

    def next_calls(self, trials: Sequence[Any], taken: set[Candidate]) -> list[int]:
        """Returns the numbers of calls of which one is tried next.

        For a quality by bisection; then some above the fewest that reach it, as a certificate asks for more
        than the prompts that select; then these fewest, and one less.
        """
        choices, wanted = self.choices, self.target.min_psnr
        if wanted is None:  # what `calibrate` finds comes first
            pending = [calls for calls in choices if self.start(calls) not in taken]
            return pending[:1] or list(choices)
        best = {at: found[0].value for at, calls in enumerate(choices) if (found := leaders(trials, calls))}
        high = min((at for at, value in best.items() if value >= wanted), default=len(choices))
        low = max((at for at, value in best.items() if value < wanted and at < high), default=-1)
        if high - low > 1:
            return [choices[(low + high) // 2]]
        tried = {trial.params["calls"] for trial in trials}
        above = [calls for more in ABOVE for calls in choices[high + more :][:1] if calls not in tried]
        return above[:1] or [choices[at] for at in (low, high) if 0 <= at < len(choices)]

    def neighbour(self, parent: Candidate, rng: np.random.Generator) -> Candidate:
        """Returns a candidate one move away; of some moved plans the one that the closed form likes best."""
        kind = str(rng.choice(list(MOVES), p=list(MOVES.values())))
        if kind in SPACE:
            values = SPACE[kind]
            return replace(parent, **{kind: values[rng.integers(len(values))]}, origin=kind)
        plans = [parent.plan] * DRAWS
        for _ in range(2 if kind == "shift two" else 1):
            plans = [move_call(plan, self.profile.steps, rng, far=kind == "swap") for plan in plans]
        cost = functools.partial(plan_cost, self.errors, np.sqrt(self.profile.sensitivity))
        return replace(parent, plan=min(plans, key=cost), origin=kind)


class SameCallsPruner(optuna.pruners.WilcoxonPruner):
    """Tests against the best trial of as many calls, on the prompts that both were judged by."""

    def prune(self, study: Any, trial: Any) -> bool:
        best = leaders(study.get_trials(deepcopy=False), trial.params["calls"])
        if not best:
            return False
        shared = {prompt: best[0].intermediate_values[prompt] for prompt in trial.intermediate_values}
        rivals = optuna.create_study(direction="maximize")  # in memory, with one trial, which is the best
        rivals.add_trial(optuna.create_trial(value=0.0, intermediate_values=shared))
        return bool(super().prune(rivals, trial))


@dataclass
class Search:
    """A search on a study, by all workers that share its storage."""

    study: Any
    evaluator: CandidateEvaluator
    sampler: MoveSampler
    options: SearchOptions
    eval_prompts: PromptSet

    def __post_init__(self) -> None:
        self.steps = self.sampler.profile.steps
        self.deadline = time.monotonic() + (self.options.timeout or math.inf)
        self.study.sampler = self.sampler
        with catch_warnings(**EXPERIMENTAL):
            self.study.pruner = SameCallsPruner(p_threshold=SIGNIFICANT, n_startup_steps=LEAST)

    @property
    def finished(self) -> list[Any]:
        """The finished trials."""
        return live_trials(self.study, *FINISHED)

    @storing()
    def run(self) -> None:
        """Makes trials until there are as many as asked for, everything was tried, or the time is over."""
        trials, report = self.sampler.trials, self.evaluator.setup.progress
        stop = optuna.study.MaxTrialsCallback(trials, (*FINISHED, TrialState.RUNNING))
        callbacks = [stop, lambda *_: report("trials", len(self.finished), trials)]
        while (left := self.deadline - time.monotonic()) > 0:
            try:
                with catch_warnings(**EXPERIMENTAL):
                    optuna.storages.fail_stale_trials(self.study)
                running = live_trials(self.study, TrialState.RUNNING)
                more = live_trials(self.study, TrialState.WAITING) or not self.sampler.exhausted
                if more and len(self.finished) + len(running) < trials:
                    limit = None if math.isinf(left) else left
                    self.study.optimize(self.objective, None, limit, catch=(Dropped,), callbacks=callbacks)
                elif not running:
                    return
                time.sleep(PAUSE if running else 0)  # a worker may die: then its trial is made here
            except (UpdateFinishedTrialError, ValueError) as error:
                if not re.match("Cannot tell a|Trial#", str(error)):  # asleep, and taken for dead
                    raise

    def objective(self, trial: Any) -> float:
        """Makes a trial; returns what its images are worth. One without finite images is pruned."""
        try:
            candidate = Candidate.suggest(trial, self.steps)
            trial.set_user_attr("drawn", trial.number)
            before = [one for one in live_trials(self.study) if one.number < trial.number]
            if any(Candidate.suggest(one, self.steps) == candidate for one in before):
                raise Dropped("an earlier trial is the same")  # two workers have queued it again
            return self.sampler.target.worth(self.judge(trial, candidate))
        except (Dropped, optuna.TrialPruned, ValueError) as reason:
            trial.set_user_attr("why", str(reason)[:500])
            raise optuna.TrialPruned(str(reason)) if isinstance(reason, ValueError) else reason from None

    def judge(self, trial: Any, candidate: Candidate) -> list[float]:
        """Returns the decibels of all select prompts; only what `calibrate` finds is never pruned."""
        calls, values = len(candidate.plan), list[float]()
        may_prune = candidate != self.sampler.start(calls)
        rule, error = self.evaluator.fit(candidate)
        trial.set_user_attr("error", error)
        least = min((one.user_attrs["error"] for one in leaders(self.finished, calls)), default=math.inf)
        if may_prune and error > WORSE * least:
            raise optuna.TrialPruned(f"final latents {error / least:.1f} times as wrong as the best")
        for rung in self.evaluator.judge(rule):
            for value in rung:
                trial.report(value, len(values))
                values.append(value)
            if may_prune and len(values) < len(self.evaluator.truth) and trial.should_prune():
                raise optuna.TrialPruned(f"worse than the best after {len(values)} prompts")
        return values
