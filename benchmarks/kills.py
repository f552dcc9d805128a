"""Killed at random moments, tuning and calibrating go on: `python -m benchmarks.kills`.

A process that tunes (or calibrates) the demo model is killed by SIGKILL at a random moment of its work, and
begun again, until it finishes. A calibration must have the bytes of a run that was not disturbed, and the
study of a search each trial once. Moments are seconds of the process's own work, whatever else is running.
"""

from __future__ import annotations

import argparse
import os
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from rich.console import Console
from rich.table import Table

from adaptcache.calibration.calibrate import calibrate
from adaptcache.presets import read_prompts, resolve
from adaptcache.tuning import study as studies
from adaptcache.tuning.evaluator import Candidate
from adaptcache.tuning.tune import tune
from tests.toy import Pipe

Work = Callable[[Path], None]  # does all that is left to do in a folder, and writes result.json there
TICK = os.sysconf("SC_CLK_TCK")
STEPS = 6


def worked(process: int) -> float:
    """Returns the seconds a process has worked."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def run(work: Work, folder: Path, after: float | None = None) -> float | None:
    """Does the work in a process of its own, and kills it after some seconds of it.

    Returns:
        The seconds it took, or None where it was killed.
    """
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work(folder)
            code = 0
        finally:
            os._exit(code)
    taken = 0.0
    while os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        taken = worked(child)
        if after is not None and taken >= after:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.01)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status == -signal.SIGKILL:
        return None
    if status:
        raise RuntimeError(f"the work in {folder} failed with {status}")
    return taken


def disturbed(work: Work, folder: Path, kills: int, seconds: float, rng: np.random.Generator) -> list[float]:
    """Does the work, and kills it a number of times; returns the moments.

    Arguments:
        work: What is to be done.
        folder: Where.
        kills: How often at most: work that is done cannot be killed.
        seconds: How long the work takes undisturbed.
        rng: Draws the moments, each in the first half of what may be left.
    """
    moments: list[float] = []
    while len(moments) < kills:
        moment = float(rng.uniform(0.0, seconds / 2))
        if run(work, folder, moment) is not None:
            return moments
        moments.append(moment)
    run(work, folder)
    return moments


def count_trials(folder: Path, steps: int) -> Counter[Candidate]:
    """Returns how often each candidate was tried to the end, in runs of so many steps."""
    storage, found = f"sqlite:///{folder / 'tuning.db'}", Counter[Candidate]()
    for name in optuna.get_all_study_names(storage):
        study = optuna.load_study(study_name=name, storage=storage)
        trials = study.get_trials(states=studies.FINISHED)
        found += Counter(Candidate.suggest(trial, steps) for trial in trials)
    return found


def works(pipe: Any, call: dict[str, Any], prompts: list[str], trials: int) -> dict[str, Work]:
    """Returns what is killed, on the demo model with few steps."""
    few: dict[str, Any] = {
        "num_inference_steps": STEPS, "pipe_kwargs": call, "batch_size": 3, "eval_prompts": prompts[6:],
        "speed": 2, "progress": False,
    }  # fmt: skip

    def tuning(folder: Path) -> None:
        found = tune(pipe, prompts[:6], trials=trials, resume=True, cache_dir=folder, **few)
        found.front.save(folder / "result.json")

    def calibrating(folder: Path) -> None:
        calibrate(pipe, prompts[:6], cache_dir=folder, **few).save(folder / "result.json")

    return {"tune": tuning, "calibrate": calibrating}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=15, help="of each of both")
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--toy", action="store_true", help="a pipeline that runs in milliseconds")
    options = parser.parse_args()
    torch.set_num_threads(1)  # threads of a pool do not live on in a fork, which would wait for them
    studies.BEAT, studies.GRACE = 1, 3  # seconds: who was killed is not waited for
    preset, rng = resolve("emoji-flux-32"), np.random.default_rng(options.seed)
    known = read_prompts(preset.prompts)
    prompts = [*known.calibration[:6], *known.held_out[:3]]
    pipe = Pipe() if options.toy else preset.load_pipeline("cpu")
    pipe.set_progress_bar_config(disable=True)
    call = {} if options.toy else dict(preset.call)
    table = Table("work", "seconds", "kills", "runs killed", "same bytes", "trials", "counted twice", "lost")
    for name, work in works(pipe, call, prompts, options.trials).items():
        with tempfile.TemporaryDirectory() as place:
            whole = Path(place) / "whole"
            seconds = run(work, whole) or 0.0
            expected, killed, same, number, twice, lost = (whole / "result.json").read_bytes(), 0, 0, 0, 0, 0
            while killed < options.kills:
                folder = Path(place) / str(number)
                moments = disturbed(work, folder, min(5, options.kills - killed), seconds, rng)
                killed, number = killed + len(moments), number + 1
                same += (folder / "result.json").read_bytes() == expected
                if name == "tune":
                    made = count_trials(folder, STEPS)
                    twice += sum(count - 1 for count in made.values())
                    lost += max(0, options.trials - made.total())
                print(name, "killed after", ", ".join(f"{moment:.2f}" for moment in moments), "s", flush=True)
        bytes_ = f"{same} of {number}" if name == "calibrate" else "-"  # draws depend on the trials before
        trials = [str(options.trials), str(twice), str(lost)] if name == "tune" else ["-"] * 3
        table.add_row(name, f"{seconds:.1f}", str(killed), str(number), bytes_, *trials)
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
