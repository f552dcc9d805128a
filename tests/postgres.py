"""A PostgreSQL server on loopback, from Debian's packages, for as long as a test needs it."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.processes import free_port

FOLDERS = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
USER = "postgres"  # the server refuses to run as root


def binary(name: str) -> str | None:
    """Returns where a program of the server is; Debian leaves them out of the path."""
    return shutil.which(name, path=os.pathsep.join([*map(str, FOLDERS), os.environ.get("PATH", "")]))


def missing() -> str:
    """Says why there can be no server here; nothing where there can."""
    if binary("postgres") is None or binary("initdb") is None:
        return "no PostgreSQL server: apt-get install postgresql"
    if os.geteuid() == 0 and USER not in {entry.pw_name for entry in pwd.getpwall()}:
        return f"PostgreSQL does not run as root, and there is no user {USER}"
    return ""


@contextmanager
def server() -> Iterator[str]:
    """Yields the URL of a database, as SQLAlchemy takes it; leaves no process and no file."""
    identity: dict[str, Any] = {"user": USER, "group": USER} if os.geteuid() == 0 else {}
    folder, port = Path(tempfile.mkdtemp(prefix="adaptcache-postgres-", dir="/tmp")), free_port()
    if identity:
        shutil.chown(folder, USER, USER)
    data, quiet = str(folder / "data"), {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    plain = {"cwd": "/", "env": {**os.environ, "LC_ALL": "C.UTF-8"}, **identity}
    initdb, postgres = binary("initdb"), binary("postgres")
    assert initdb and postgres
    try:
        subprocess.run([initdb, "-D", data, "-U", "tuner", "-A", "trust", "-N"], check=True, **quiet, **plain)
        options = ["-h", "127.0.0.1", "-p", str(port), "-k", str(folder), "-c", "fsync=off"]
        running = subprocess.Popen([postgres, "-D", data, *options], **quiet, **plain)
        try:
            yield _answering(f"postgresql://tuner@127.0.0.1:{port}/postgres", running)
        finally:
            running.send_signal(signal.SIGINT)  # does not wait for clients
            running.wait(60)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _answering(url: str, running: subprocess.Popen[bytes], patience: float = 60) -> str:
    import psycopg

    until = time.monotonic() + patience
    while True:
        try:
            psycopg.connect(url).close()
            return url.replace("postgresql://", "postgresql+psycopg://")
        except psycopg.OperationalError:
            if running.poll() is not None or time.monotonic() > until:
                raise
            time.sleep(0.1)
