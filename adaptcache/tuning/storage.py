"""Where trials are kept: any storage of optuna, a SQLite file in the cache folder if none is named."""

from __future__ import annotations

import os
import platform
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

__all__ = [
    "alive", "heartbeats", "open_storage", "open_study", "optuna", "storage_failure", "turnstile", "worker",
]  # fmt: skip

BEAT, GRACE = 60, 180  # seconds between the signs of life of a trial, and how long they may be missing
WAIT = 60  # seconds for the lock of SQLite


def optuna() -> Any:
    """Imports optuna, which is an extra, and quietens it: what it would print is on our own screen."""
    try:
        import optuna as library
    except ImportError:
        raise ImportError("tuning needs optuna: pip install 'adaptcache-diffusers[tune]'") from None
    library.logging.set_verbosity(library.logging.ERROR)
    return library


@contextmanager
def quietly() -> Iterator[None]:
    """Keeps optuna's notes on what it calls experimental off the screen."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna().exceptions.ExperimentalWarning)
        yield


def open_storage(where: str | Path | None, folder: Path | None) -> Any:
    """Opens a storage.

    Arguments:
        where: The URL of a database, or the path of a journal file; None takes the default.
        folder: The cache folder; with neither the trials are kept in memory.

    Raises:
        ValueError: It cannot be opened.
    """
    library = optuna()
    if where in ("sqlite://", "sqlite:///:memory:") or (where is None and folder is None):
        return library.storages.InMemoryStorage()
    if where is None:
        assert folder is not None
        folder.mkdir(parents=True, exist_ok=True)
        where = f"sqlite:///{folder / 'tuning.db'}"
    try:
        if "://" in str(where):
            extra = {"connect_args": {"timeout": WAIT}} if str(where).startswith("sqlite") else {}
            with quietly(), _lock(str(where)):  # two that begin at once would both make the tables
                return library.storages.RDBStorage(
                    str(where), engine_kwargs=extra, heartbeat_interval=BEAT, grace_period=GRACE
                )
        Path(where).parent.mkdir(parents=True, exist_ok=True)
        journal = library.storages.journal
        lock = journal.JournalFileOpenLock(str(where))
        return library.storages.JournalStorage(journal.JournalFileBackend(str(where), lock_obj=lock))
    except Exception as error:  # a driver, a network, a file: all there is to say is why
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        shown = str(where).split("://")[0] + "://..." if "@" in str(where) else where  # no password
        raise ValueError(f"cannot open the storage {shown}: {reason}") from None


def open_study(storage: Any, name: str, resume: bool) -> Any:
    """Opens a study, or begins it.

    Raises:
        ValueError: There are trials already, and they are not to be gone on with.
    """
    library = optuna()
    study = library.create_study(
        storage=storage, study_name=name, load_if_exists=True, directions=["minimize", "maximize"],
        sampler=library.samplers.RandomSampler(),  # never draws: all trials are enqueued
    )  # fmt: skip
    with quietly():
        study.set_metric_names(["denoiser calls", "PSNR, dB"])
    if not resume and (count := len(study.get_trials(deepcopy=False))):
        raise ValueError(
            f"{count} trials of this search are in the storage, in the study {name}: go on with them "
            "(--resume, resume=True), or take another seed"
        )
    return study


def turnstile(storage: Any) -> Any:
    """Returns a lock that one worker at a time holds while it takes a trial.

    Databases see to that by themselves, but SQLite does not: there two workers can take the same trial.
    The lock is given back by the system when a process dies.
    """
    return _lock(str(getattr(storage, "url", "")))


def _lock(url: str) -> Any:
    """Returns the lock beside a SQLite file; nothing to wait for with another database."""
    if not url.startswith("sqlite:///"):
        return nullcontext()
    from filelock import FileLock

    return FileLock(url.removeprefix("sqlite:///").split("?")[0] + ".lock")


def storage_failure(error: BaseException | None) -> str:
    """Returns what is wrong with the storage, if that was the cause of an error; optuna hides it at times."""
    while error is not None:
        if isinstance(error, optuna().exceptions.StorageInternalError):
            return str(error.__cause__ or error).splitlines()[0][:200]
        error = error.__cause__ or error.__context__
    return ""


def heartbeats(study: Any) -> None:
    """Fails trials whose worker gave no sign of life, on whatever machine, where the storage knows."""
    with quietly():
        optuna().storages.fail_stale_trials(study)


def worker() -> str:
    """Returns a name of this process that no other has: also none that comes later with the same number."""
    return f"{platform.node()} {os.getpid()} {_since(os.getpid())}"


def alive(name: str) -> bool | None:
    """Whether a worker is still there; None where it is on another machine."""
    node, _, rest = name.rpartition(" ")[0].rpartition(" ")
    number, since = rest, name.rpartition(" ")[2]
    if node != platform.node() or not number.isdigit() or os.name == "nt":  # os.kill asks nothing there
        return None
    try:
        with suppress(PermissionError):  # somebody else's, but there
            os.kill(int(number), 0)
    except ProcessLookupError:
        return False
    return _since(int(number)) == since


def _since(process: int) -> str:
    """Returns when a process began, where the system tells: its number may be given again."""
    try:
        state, started = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0::19][:2]
    except (OSError, ValueError):
        return "0"
    return "0" if state == "Z" else started  # a zombie does no more work
