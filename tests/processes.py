"""Runs a function in several processes that find each other on loopback, as torchrun starts them."""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from typing import Any

LIMIT = 240  # seconds until processes that hang are ended: this machine may be busy

CONTEXT = multiprocessing.get_context("forkserver")  # imports once, before any thread was started
CONTEXT.set_forkserver_preload(["tests.processes", "tests.conftest", "accelerate", "tests.toy"])


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def launch(work: Callable[..., Any], size: int, *given: Any) -> list[Any]:
    """Returns what `work(*given)` returned in each of `size` ranks, or the text of what it raised.

    A rank that was killed gives its exit code.
    """
    port, pipes, processes = free_port(), [], []
    for rank in range(size):
        here, there = CONTEXT.Pipe(duplex=False)
        process = CONTEXT.Process(target=_run, args=(there, rank, size, port, work, given), daemon=True)
        process.start()
        there.close()
        pipes.append(here)
        processes.append(process)
    results = []
    for pipe, process in zip(pipes, processes, strict=True):
        try:
            assert pipe.poll(LIMIT), "a rank hangs"
            results.append(pipe.recv())
        except EOFError:
            process.join()
            results.append(process.exitcode)
        except AssertionError:
            for other in processes:
                other.kill()
            raise
    for process in processes:
        process.join(LIMIT)
    return results


def _run(pipe: Any, rank: int, size: int, port: int, work: Callable[..., Any], given: Any) -> None:
    import torch

    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "HF_HUB_OFFLINE": "1",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip
    try:
        pipe.send(work(*given))
    except Exception as error:
        if os.environ.get("TEST_DEBUG"):
            traceback.print_exc()
        pipe.send(f"{type(error).__name__}: {error}")
