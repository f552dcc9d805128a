"""Follows schedules from theory, which are made when the grid of a run is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..cache import Cache
from ..forecasts.extrapolate import Extrapolate
from ..policies.uniform import Uniform
from ..schedule.instant import InstantRequest, check_speed, load_instant
from ..schedule.rule import Rule
from ..schedule.schedule import Schedule
from .runner import Runner

__all__ = ["InstantRunner"]

KEPT = 32  # schedules in memory: a server may see any number of sizes and guidance scales


class InstantRunner(Runner):
    """A runner whose schedule is that of theory for the grid, the sampler and the guidance of each run.

    Arguments:
        speed: Steps over computed steps.
        read: Returns what a run needs, from what the hook was installed on and the speed, when the run starts.
        guard: Whether to compute everything from where a computed output is farther from its forecast than theory
            expects of any model.
    """

    def __init__(self, speed: float, read: Callable[[Any, float], InstantRequest], guard: bool = False) -> None:
        self.speed, self.wants_guard = check_speed(speed), guard
        self.made: dict[str, Schedule] = {}
        rule = Rule(policy=Uniform(interval=1), forecast=Extrapolate())  # until the first run starts
        super().__init__(Schedule(name=f"instant-{speed:g}x", rules=(rule,)), read=read)

    def on_run_start(self, times: tuple[float, ...]) -> None:
        assert self.read is not None
        request = self.read(self.gate, self.speed)
        if request.key not in self.made:
            if len(self.made) >= KEPT:
                del self.made[next(iter(self.made))]
            self.made[request.key] = load_instant(request, Cache())
        self.original, self.guard = self.made[request.key], self.wants_guard
        self.follow(None)
        super().on_run_start(times)
