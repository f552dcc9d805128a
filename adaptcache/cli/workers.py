"""The same command in other processes, which share the trials of one storage."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from types import TracebackType
from typing import Self

import torch

__all__ = ["Workers"]


class Workers:
    """Runs this command again, so and so often, until it is left.

    A worker that dies costs nothing: its trial is made by another. All processors are shared out.

    Arguments:
        count: How many others there are.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.running: list[subprocess.Popen[str]] = []

    def start(self) -> None:
        """Starts them; not before the study and the full runs are there, so that none makes these again."""
        if not self.count:
            return
        threads = max(1, torch.get_num_threads() // (self.count + 1))
        torch.set_num_threads(threads)
        command = [sys.executable, "-m", "adaptcache", *sys.argv[1:], "--join"]
        for _ in range(self.count):
            process = subprocess.Popen(
                command, env={**os.environ, "OMP_NUM_THREADS": str(threads)}, text=True,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            )  # fmt: skip
            self.running.append(process)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        for process in self.running:
            if kind is not None:
                process.terminate()
            complaint = process.communicate()[1]
            if kind is None and process.returncode:
                last = (complaint.strip().splitlines() or ["no word"])[-1]
                warnings.warn(f"a worker ended early ({last}); the others made its trials", stacklevel=2)
