"""The same command in other processes, which share the trials of one storage."""

import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import torch


class Workers:
    """Runs this command in `count` further processes until the context is closed.

    The trial of a worker that dies is made by another. The threads are shared out.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.running: list[tuple[subprocess.Popen[bytes], IO[bytes]]] = []

    def start(self) -> None:
        """Starts them; not before the study and the full runs are there, so that none makes these again."""
        if not self.count:
            return
        threads = max(1, torch.get_num_threads() // (self.count + 1))
        torch.set_num_threads(threads)
        root = str(Path(__file__).resolve().parents[2])  # the same copy of the package, however it was found
        paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": paths}
        command = [sys.executable, "-m", "adaptcache", *sys.argv[1:], "--join"]
        for _ in range(self.count):
            errors = tempfile.TemporaryFile()  # not a pipe, which would be full before it is read
            nothing = subprocess.DEVNULL
            process = subprocess.Popen(command, env=environment, stdin=nothing, stdout=nothing, stderr=errors)
            self.running.append((process, errors))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for process, errors in self.running:
            if kind is not None:
                process.terminate()
            process.wait()
            with errors:
                errors.seek(0)
                lines = errors.read().decode(errors="replace").strip().splitlines()
            if kind is None and process.returncode:
                last = lines[-1] if lines else f"code {process.returncode}"
                warnings.warn(f"a worker ended early ({last}); the others made its trials", stacklevel=2)
