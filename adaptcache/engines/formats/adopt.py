"""Settings of other engines as schedules."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from ... import __version__
from ...errors import ScheduleError
from ...forecasts.extrapolate import Extrapolate
from ...hooks import Update
from ...policies.plan import Plan
from ...profiling.reference import twin
from ...runs import Call, Prompt
from ...schedule.format import Denoiser, Grid, Kernel
from ...schedule.rule import Rule
from ...schedule.schedule import Schedule
from ...step import Step
from ..diffusers.gate import Gate
from ..diffusers.identity import fingerprint
from .masks import mask_of
from .read import read

__all__ = ["Target", "adopted"]


class Begun(Exception):
    """A run has begun: its grid is known, and no more is asked."""


class Grids:
    """Learns the grid of a run and stops it after the first denoiser call, at the first step."""

    def begin(self, times: tuple[float, ...]) -> None:
        self.times = times
        raise Begun

    def computes(self, step: Step) -> bool:
        return True

    def update(self, update: Update) -> Any:
        raise AssertionError("the run was stopped before")

    def landed(self, update: Update, y: Any) -> None:
        raise AssertionError("the run was stopped before")

    def end(self) -> None:
        """Nothing was kept."""


@dataclass(frozen=True)
class Target:
    """What an imported schedule is for.

    Arguments:
        denoiser: The denoiser.
        grid: The steps.
        kernel: What is known of the outputs; None where nothing was measured.
    """

    denoiser: Denoiser
    grid: Grid
    kernel: Kernel | None = None

    @classmethod
    def of(cls, pipe: Any, call: Call, prompts: Sequence[Prompt]) -> Self:
        """Asks a pipeline: runs the first prompt, and stops after the first denoiser call."""
        own, visitor = twin(pipe), Grids()
        with suppress(Begun), closing(Gate(own, visitor).open()):
            call(own, prompts[:1])
        grid = Grid(scheduler=type(pipe.scheduler).__name__, times=visitor.times)
        return cls(fingerprint(pipe), grid)


def adopted(
    source: Any, target: Target | Schedule, *, kind: str | None = None, name: str | None = None
) -> Schedule:
    """Makes a schedule of the settings of another engine.

    The computed steps are kept. Other engines reuse the residual of the block stack at the others, the
    schedule reuses the guided output: the calls are the same, the images are not quite.

    Arguments:
        source: A file, or what is in one: a mapping or a list.
        target: For which denoiser and steps: a schedule for the same, or `Target.of(pipe, call, prompts)`.
        kind: What the source is, one of `adaptcache.adopt.masks.KINDS`; None looks at its keys.
        name: What the schedule is called; None takes the name of the file.

    Raises:
        ScheduleError: The source is not understood, or is for another number of steps.

    Example:
        >>> schedule = adopted("plan.yaml", Target.of(pipe, Call(28), ["a lighthouse"]))
    """
    isfile = isinstance(source, (str, Path))
    data = read(source) if isfile else source
    times = target.grid.times
    found, mask = mask_of(data, len(times), kind)
    if len(mask) != len(times):
        raise ScheduleError(
            f"the {found} settings are for {len(mask)} steps, the target has {len(times)}: "
            f"give a target of {len(mask)} steps"
        )
    steps = sorted({0, *(i for i, step in enumerate(mask) if step)})  # step 0 is always computed
    return Schedule(
        name=name or (Path(source).stem if isfile else f"adopted-{found}"),
        denoiser=target.denoiser,
        grid=target.grid,
        rules=(Rule(policy=Plan.of(steps, times), forecast=Extrapolate(order=0)),),
        kernel=target.kernel,
        made={"adaptcache": __version__, "adopted": found},
    )
