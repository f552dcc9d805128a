"""`python -m tests.soak [runs]`: many short runs on one attached pipeline, as a service makes them.

Steps, sizes, batch sizes and schedules change at random, some runs are broken off. Sampled runs are
made again on a fresh pipeline and have to be equal to the bit; memory has to stay as it is.
"""

from __future__ import annotations

import gc
import random
import sys
import time
import warnings
from dataclasses import dataclass, field
from typing import Any

import psutil
import torch

import adaptcache
from adaptcache.forecasts.extrapolate import Extrapolate
from adaptcache.schedule.schedule import Schedule
from tests.calls import Call
from tests.conftest import embedded, schedule_of, tiny_flux

PROMPTS = embedded(6)


class BrokenOff(Exception):
    """Somebody closed the page."""


@dataclass
class Outcome:
    """What a soak gave.

    Arguments:
        runs: How many were begun.
        broken: How many of them were broken off.
        swaps: How often the schedule was changed.
        compared: How many were made again on a fresh pipeline.
        unequal: How many of these differed.
        memory: Megabytes of the process, a value each tenth of the runs.
        tensors: Live tensors at the same moments.
    """

    runs: int = 0
    broken: int = 0
    swaps: int = 0
    compared: int = 0
    unequal: int = 0
    memory: list[float] = field(default_factory=list)
    tensors: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Request:
    """One run: how it is called, with which prompts, and at which step it is broken off (-1: never)."""

    call: Call
    first: int
    samples: int
    stop: int

    @staticmethod
    def drawn(rng: random.Random) -> Request:
        size = {"height": rng.choice([16, 32]), "width": 16}
        steps = rng.randint(2, 8)
        stop = rng.randrange(steps) if rng.random() < 0.1 else -1
        return Request(Call(steps, size, seed=rng.randrange(100)), rng.randrange(5), rng.choice([1, 2]), stop)

    def made(self, pipe: Any) -> torch.Tensor:
        """Makes the run."""

        def callback(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            if step == self.stop:
                raise BrokenOff
            return tensors

        prompts = PROMPTS[self.first : self.first + self.samples]
        call = Call(self.call.steps, {**self.call.arguments, "callback_on_step_end": callback}, self.call.seed)
        result: torch.Tensor = call(pipe, prompts)
        return result


def schedules(pipe: Any) -> list[Schedule]:
    """Returns schedules by hand and a calibrated one, all for 8 steps: other numbers are planned anew."""
    by_hand = [schedule_of(pipe, plan, forecast=Extrapolate(order=k)) for k, plan in enumerate([[0, 4], [0, 1, 5]])]
    size = {"height": 16, "width": 16}
    return [*by_hand, adaptcache.calibrate(pipe, PROMPTS[:2], steps=8, budget=0.5, call=size)]


def again(request: Request, schedule: Schedule) -> torch.Tensor:
    """Makes a run on a pipeline that has made no other."""
    pipe = tiny_flux()
    with adaptcache.attach(pipe, schedule):
        return request.made(pipe)


def soak(runs: int, every: int = 50, seed: int = 0) -> Outcome:
    """Makes `runs` runs, and every so many of them again on a fresh pipeline."""
    rng, pipe, outcome = random.Random(seed), tiny_flux(), Outcome()
    known, process = schedules(pipe), psutil.Process()
    schedule = known[0]
    handle = adaptcache.attach(pipe, schedule)
    for number in range(runs):
        if rng.random() < 0.05:
            handle.close()
            schedule = rng.choice(known)
            handle = adaptcache.attach(pipe, schedule)
            outcome.swaps += 1
        request = Request.drawn(rng)
        outcome.runs += 1
        try:
            result = request.made(pipe)
            if number % every == 0:
                outcome.compared += 1
                outcome.unequal += not torch.equal(result, again(request, schedule))
        except BrokenOff:
            outcome.broken += 1
        if (number + 1) % max(1, runs // 10) == 0:
            gc.collect()
            outcome.memory.append(process.memory_info().rss / 2**20)
            outcome.tensors.append(sum(issubclass(type(item), torch.Tensor) for item in gc.get_objects()))
    handle.close()
    return outcome


def main() -> int:
    """Returns 1 where a run differed, or memory grew by 5 % after the first tenth."""
    warnings.simplefilter("ignore")  # that other steps are planned anew is the point
    since = time.perf_counter()
    found = soak(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
    seconds = time.perf_counter() - since
    print(f"{found.runs} runs in {seconds:.0f} s, {found.broken} broken off, {found.swaps} swaps")
    print(f"{found.compared} made again on a fresh pipeline, {found.unequal} of them unequal")
    print("MB, by tenths:      " + " ".join(f"{value:.0f}" for value in found.memory))
    print("tensors, by tenths: " + " ".join(map(str, found.tensors)))
    return int(found.unequal > 0 or found.memory[-1] > 1.05 * found.memory[0])


if __name__ == "__main__":
    sys.exit(main())
