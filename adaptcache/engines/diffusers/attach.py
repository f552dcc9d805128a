"""Attaches a schedule to a pipeline: the handle, and what it can tell."""

import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Self

from ...errors import AttachError
from ...runtime.report import Report
from ...runtime.runner import InstantRunner, Runner
from ...schedule.findings import Grade, check_findings, explain_findings
from ...schedule.schedule import Schedule
from .affine import read_run
from .compatibility import check_schedule, graded, graded_call
from .components import find_remembering
from .gate import Gate
from .identity import components_of, settings_of, state_of

REMEMBERS = "{name} remembers earlier steps: at skipped ones it saw the outputs of the step that was computed last"
ALLOWED = {"guidance"}


class Handle:
    """An attached schedule: a context manager, with `report()`, `gear`, `loop()`, `paused()` and `close()`."""

    def __init__(self, pipe: Any, runner: Runner, allow: Collection[str] = ()) -> None:
        allow = {allow} if isinstance(allow, str) else set(allow)
        if unknown := sorted(allow - ALLOWED):
            raise ValueError(
                f"allow takes a list of findings, of {', '.join(sorted(ALLOWED))}; got {', '.join(unknown)}"
            )
        self._pipe, self._runner, self._allow = pipe, runner, frozenset(allow)
        self._found = check_schedule(runner.original, pipe, runner.strict)
        self._state, made = state_of(pipe), runner.original.made
        # What a schedule does not say of the pipeline is to stay as it is now.
        known = made.get("components") or {}
        known = {**components_of(pipe, besides=known), **known}
        made = {"config": settings_of(pipe), **made, "components": known}
        self._known = runner.original.model_copy(update={"made": made})
        self._warned = {finding.what for finding in self._found}
        with ExitStack() as undo:
            self._gate = Gate(pipe, runner, self._on_call, self._changed).open()
            undo.callback(self._gate.close)
            undo.push(runner.install(self._gate))
            self._undo = undo.pop_all()

    def _changed(self) -> bool:
        """Compares the pipeline as it is now; whether that differs otherwise than when it was last compared."""
        before = self._found
        if (state := state_of(self._pipe)) != self._state:
            self._found, self._state = graded(self._known, self._pipe), state
        return self._found != before

    def _on_call(self, arguments: Mapping[str, Any]) -> None:
        """Compares the pipeline and its call, as they are now, with what was calibrated; warns or refuses."""
        schedule, strict = self._runner.schedule, self._runner.strict
        self._changed()
        found = [*self._found, *graded_call(self._known, self._pipe, arguments)]
        found = [one for one in found if one.grade >= Grade.WARNED]
        refusable = [one for one in found if one.what not in self._allow]
        check_findings(schedule, refusable, strict)
        self._runner.on_call_start(measured=not found)
        for finding in refusable:
            if finding.what not in self._warned:
                self._warned.add(finding.what)
                warnings.warn(explain_findings(schedule, [finding]), stacklevel=6)

    @property
    def schedule(self) -> Schedule:
        """What the last run followed; of an instant schedule: that for its grid, after the first run."""
        return self._runner.original

    @property
    def gear(self) -> int:
        """Which plan the last run followed. May be set between runs; None lets the schedule choose."""
        return self._runner.account.gear

    @gear.setter
    def gear(self, gear: int | None) -> None:
        if self._gate.loop is not None:
            raise AttachError("a run is going on, with weights of its own gear: set another one between runs")
        self._runner.follow(gear)

    def report(self) -> Report:
        """Returns what the last call of the pipeline did, all of its loops together."""
        gate, runner = self._gate, self._runner
        loops = [*gate.done, *([gate.loop.calls] if gate.loop is not None and gate.loop.decided else [])]
        steps = [branches for loop in loops for branches in loop]
        calls = tuple(tuple(made for _, made in branches) for branches in steps)
        names = tuple(tuple(name for name, _ in branches) for branches in steps)
        account = runner.followed
        notes = [REMEMBERS.format(name=name) for name in find_remembering(self._pipe) if not all(map(all, calls))]
        sites, unlike = runner.site_steps(), runner.unlike()
        return Report(calls, runner.evidence, account.gear, account.why(), sites, names, unlike, tuple(notes))

    @contextmanager
    def loop(self, **arguments: Any) -> Iterator[None]:
        """Follows a denoising loop of your own, which does not go through the pipeline's call.

        Arguments:
            arguments: What the loop was called with, as far as it is to be compared with the calibration.

        Example:
            >>> with attach(pipe, schedule) as handle, handle.loop():
            ...     pipe.scheduler.set_timesteps(28)
            ...     for t in pipe.scheduler.timesteps: ...
        """
        known = self._runner.schedule.made.get("call") or {}
        with nullcontext() if self._gate.pauses else self._gate.calling({**known, **arguments}, own_loop=True):
            yield

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Runs the pipeline as if nothing were attached, for comparisons."""
        gate = self._gate
        gate.pauses.append(None)
        try:
            with gate.aside() if gate.running else nullcontext():
                yield
        finally:
            gate.pauses.pop()

    def close(self) -> None:
        """Takes the schedule off the pipeline and leaves nothing behind, after a run in another thread. Safe to call
        twice."""
        with self._gate.caller:
            self._undo.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def attach(
    pipe: Any,
    schedule: Schedule | str | Path | None = None,
    *,
    speed: float | None = None,
    strict: bool = False,
    gear: int | None = None,
    guard: bool | None = None,
    allow: Collection[str] = (),
) -> Handle:
    """Runs a pipeline by a schedule, or from theory, until the returned handle is closed.

    Arguments:
        pipe: A diffusers pipeline with a scheduler and a denoiser.
        schedule: What `adaptcache.calibrate` or `Schedule.load` returned; or a file, a folder, or a hub id.
        speed: Without a schedule: how many times fewer denoiser calls are made. Plan and weights come from theory,
            for the grid, the sampler and the guidance of each run, in a second at the first; a warning says where
            theory does not hold at this speed and more calls are made.
        strict: Refuse grids the schedule was not fitted on, other weights and other arguments, where it would warn.
        gear: Which plan to follow, from the fastest (0). None leaves it to schedules that choose one for
            each prompt, and is the fastest of others.
        guard: With `speed`: compute everything from where computed steps are farther from their forecasts than theory
            expects of any model; None is True. With a schedule it is deprecated: a slower gear does more with the
            calls.
        allow: Findings to run with that are refused otherwise: "guidance" beyond twice the calibrated one.

    Returns:
        A handle that is a context manager.

    Raises:
        ScheduleError: The schedule was fitted on another denoiser class, or has nothing for the guard.
        LookupError: It has no such gear.
        AttachError: The pipeline cannot be watched, or is already.
        TypeError: Neither a schedule nor a speed is given, or both.

    Example:
        >>> with adaptcache.attach(pipe, "flux.json") as handle:
        ...     image = pipe("a lighthouse in a storm").images[0]
        >>> print(handle.report())
        >>> with adaptcache.attach(pipe, speed=2):
        ...     image = pipe("a lighthouse in a storm").images[0]
    """
    if (schedule is None) == (speed is None):
        raise TypeError(
            'attach takes a schedule, or a speed without one: attach(pipe, "flux.json"), or attach(pipe, speed=2)'
        )
    if speed is not None:
        if gear is not None or strict:
            raise TypeError("gear and strict are for calibrated schedules: an instant one has one gear, for any grid")
        return Handle(pipe, InstantRunner(speed, read_run, guard is not False), allow)
    if guard:
        warnings.warn(
            "the guard of calibrated schedules goes with version 0.3: a slower schedule does more with the calls "
            "(docs/adaptive.md); report().unlike says what the guard saw",
            DeprecationWarning,
            stacklevel=2,
        )
    return Handle(pipe, Runner(as_schedule(schedule), strict, gear, bool(guard), read_run), allow)


def as_schedule(schedule: Any) -> Schedule:
    """Returns a schedule, loaded where its file, folder or hub id is given; `TypeError` for others."""
    if isinstance(schedule, Schedule):
        return schedule
    if isinstance(schedule, (str, Path)):
        return Schedule.from_pretrained(schedule)
    raise TypeError(f"attach takes a schedule or a path, got {type(schedule).__name__}: Schedule.load(path) reads one")
