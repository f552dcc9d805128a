"""Makes the settings of another engine a schedule for one pipeline and its steps."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from ... import __version__
from ...errors import ScheduleError
from ...hooks import StepHook
from ...policies.plan import Plan
from ...runs import PromptSet, Setup
from ...schedule.format import Denoiser, Grid, Kernel, same_grid
from ...schedule.rule import LAYERS, Rule
from ...schedule.schedule import Schedule
from .mask import computed_steps
from .read import interpret, parse_settings


class RunStarted(Exception):
    """The grid is known."""


class GridHook(StepHook):
    """Keeps the grid of a run and stops it at its first step, after one denoiser call."""

    def on_run_start(self, times: tuple[float, ...]) -> None:
        self.times = times
        raise RunStarted


@dataclass(frozen=True)
class Target:
    """What an adopted schedule is for: a denoiser, its steps, and the kernel of its outputs if known."""

    denoiser: Denoiser
    grid: Grid
    kernel: Kernel | None = None

    @classmethod
    def of(cls, setup: Setup, prompts: PromptSet) -> Self:
        """Asks a pipeline: runs its first prompt, and stops after the first denoiser call."""
        hook = GridHook()
        with suppress(RunStarted):
            setup.run(hook, prompts[:1])
        denoiser, scheduler, *_ = setup.engine.describe(setup.call)
        return cls(Denoiser.model_validate(denoiser), Grid(scheduler=scheduler, times=hook.times))


def adopt(source: Any, target: Target | Schedule, *, kind: str | None = None, name: str | None = None) -> Schedule:
    """Makes a schedule of the settings of another engine.

    The computed steps are kept. Other engines reuse the residual of the block stack at the others, the
    schedule reuses the guided output: the calls are the same, the images are not quite. A table keeps its
    weights.

    Arguments:
        source: A file, or what is in one: a mapping or a list.
        target: For which denoiser and steps: a schedule for the same, or `Target.of(setup, prompts)`.
        kind: What the source is, one of `FORMATS`; None looks at its keys.
        name: What the schedule is called; None takes the name of the file.

    Raises:
        ScheduleError: The source is not understood, decides during the run, or is for other steps.

    Example:
        >>> schedule = adopt("plan.yaml", Target.of(setup, PromptSet(("a lighthouse",))))
    """
    is_file, times = isinstance(source, (str, Path)), target.grid.times
    found, settings = interpret(parse_settings(source) if is_file else source, len(times), kind)
    every = rule, *_ = (settings.rule, *settings.more)
    if settings.steps not in (None, len(times)):
        raise ScheduleError(
            f"the {found} settings are for {settings.steps} steps, the target has {len(times)}: "
            f"give a target of {settings.steps} steps"
        )
    if settings.times and not same_grid(settings.times, times):
        raise ScheduleError(f"the {found} settings are for other times than those of the target")
    if rule.policy.signal != "none":
        raise ScheduleError(
            f"the {found} settings hold no plan: their {rule.policy.type} decides during the run; "
            "read_schedule makes a schedule of them"
        )
    # Of types of layers with a plan each, a step is computed where any of them is.
    whole = (own if own.each or own.site not in LAYERS else own.model_copy(update={"site": "step"}) for own in every)
    made = (Schedule(name=found, grid=Grid(times=times), rules=(own,)) for own in whole)
    steps = sorted({step for schedule in made for step in computed_steps(schedule)})
    return Schedule(
        name=name or (Path(source).stem if is_file else f"adopted-{found}"),
        denoiser=target.denoiser,
        grid=target.grid,
        rules=(Rule(policy=Plan.of(steps, times), forecast=rule.forecast),),
        kernel=target.kernel,
        made={"adaptcache": __version__, "adopted": found},
    )
