"""The only code that touches a forward or a scheduler: it skips denoiser calls and lets a visitor decide.

The gate watches the pipeline's scheduler. `set_timesteps` starts a run, `step` ends a step, and the
denoiser calls in between are the step's branches, in call order. At a skipped step each branch returns
its last computed output, the guider makes of it what it likes, and `scheduler.step` receives the
visitor's forecast of the *guided* output instead. So no guider and no architecture is a special case.

Two things change while a gate is open, and change back when it closes:

- the scheduler's class becomes a subclass made here, so that the copies some pipelines make of their
  scheduler (one for video, one for audio) are watched too;
- the denoiser's `_compiled_call_impl`, which `nn.Module.__call__` asks first, becomes a `Guard`. It
  stands outside of hooks, offloading and compiled code: none of them sees it, a skip runs none of them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from .clock import Step, first_step, times_of
from .errors import AttachError
from .signals import entering
from .watch import Guard, Move, Watch, denoisers_of, landing, shapes_of

__all__ = ["Gate", "Update", "Visitor"]


@dataclass(frozen=True)
class Update:
    """A step the scheduler is about to take.

    Arguments:
        step: Where the run is.
        track: Which scheduler: 0 is the pipeline's own, 1 and up are its copies (audio next to video).
        move: The scheduler's step: the latents `x`, the guided output `u` (which means nothing where
            `computed` is false), both with shape (B, *), and a way to try it `dry`.
        computed: Whether the denoiser was called.
    """

    step: Step
    track: int
    move: Move
    computed: bool


class Visitor(Protocol):
    """What a gate asks and tells, in this order. Recorder, matcher and runtime are visitors."""

    def begin(self, times: tuple[float, ...]) -> None:
        """A run starts, on a grid of times with shape (N,)."""

    def computes(self, step: Step) -> bool:
        """Whether to call the denoiser at this step. Asked once a step."""

    def update(self, update: Update) -> Tensor:
        """Returns the model output the scheduler is to use, with the shape of `update.move.u`."""

    def landed(self, update: Update, y: Tensor) -> None:
        """The scheduler has landed on `y`, with shape (B, *)."""

    def end(self) -> None:
        """The run is over, or was abandoned: let go of its tensors."""


@dataclass
class Run:
    """What a gate knows of the run it is in."""

    thread: int
    taken: dict[int, int]  # scheduler id -> steps it has taken; the pipeline's own comes first
    times: tuple[float, ...] = ()
    past: tuple[int, ...] = ()
    decided: list[bool] = field(default_factory=list)  # by step
    calls: list[list[bool]] = field(default_factory=list)  # by step and branch: whether it was made
    outputs: dict[int, tuple[Any, Any]] = field(default_factory=dict)  # branch -> input shapes, output


class Gate:
    """Watches one pipeline for one visitor, from `open` to `close`."""

    def __init__(self, pipe: Any, visitor: Visitor) -> None:
        self.pipe, self.visitor, self.scheduler = pipe, visitor, pipe.scheduler
        self.run: Run | None = None  # set from `set_timesteps` to the last step
        self.calls: list[list[bool]] = []  # of the last run
        self._undo, self._guards = ExitStack(), ExitStack()

    def open(self) -> Gate:
        """Starts watching; changes nothing when it raises."""
        for part in [self.scheduler, *denoisers_of(self.pipe)]:
            if Watch.of(part) or Guard.of(part):
                raise AttachError(
                    f"the {type(part).__name__} of this pipeline is attached already; close() it first"
                )
        with ExitStack() as undo:
            undo.callback(lambda: self._guards.close())
            self._guard()
            Watch.stand(self.scheduler, self, undo)
            self._undo = undo.pop_all()
        return self

    def close(self) -> None:
        """Puts everything back. Safe to call twice."""
        self._undo.close()
        self._finish()

    def _guard(self) -> None:
        """Guards the denoisers the pipeline has now: they may have been compiled since the last run."""
        denoisers = denoisers_of(self.pipe)
        if all(Guard.of(denoiser) for denoiser in denoisers):
            return
        self._guards.close()
        with ExitStack() as undo:
            for denoiser in denoisers:
                Guard(denoiser, self.call).stand(undo)
            self._guards = undo.pop_all()

    def start(self, scheduler: Any) -> None:
        """`set_timesteps` was called: a run starts."""
        if scheduler is self.scheduler:
            self._finish()  # the last run was abandoned
            self._guard()
            self.run = Run(threading.get_ident(), {id(scheduler): 0})
        elif self.run is not None:  # a copy the pipeline made, for its other latents
            self.run.taken[id(scheduler)] = 0

    def call(self, denoiser: nn.Module, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """The denoiser was called: call it, or return what the branch returned last."""
        run = self._running()
        if run is None:  # somebody calls the denoiser outside of a pipeline's loop
            return original(*args, **kwargs)
        if not run.times:  # not known before: image-to-image starts inside of the grid
            timestep = kwargs.get("timestep", args[1] if len(args) > 1 else None)
            run.times = times_of(self.scheduler)[first_step(self.scheduler, timestep) :]
            self.visitor.begin(run.times)
        index = run.taken[id(self.scheduler)]
        if index == len(run.decided):
            step = Step(index, run.times, run.past, x=entering(args, kwargs))
            run.decided.append(self.visitor.computes(step))
            run.calls.append([])
        branch, shapes = len(run.calls[index]), shapes_of(args, kwargs)
        # A branch that was never computed, or not for this shape, has nothing to return: it is computed.
        skip = not run.decided[index] and run.outputs.get(branch, (None,))[0] == shapes
        run.calls[index].append(not skip)
        if not skip:
            run.outputs[branch] = (shapes, original(*args, **kwargs))
        return run.outputs[branch][1]

    def step(self, move: Move) -> Any:
        """`scheduler.step` was called: hand it the output that the visitor chooses."""
        run, scheduler = self._running(), move.scheduler
        if run is None:
            return move.make(move.u)
        index = run.taken.setdefault(id(scheduler), 0)
        if index >= len(run.decided):
            raise AttachError(
                f"{type(scheduler).__name__} stepped before the denoiser was called (step {index}): "
                "this pipeline does not call its transformer or unet before each step of its scheduler"
            )
        track = list(run.taken).index(id(scheduler))
        update = Update(Step(index, run.times, run.past), track, move, run.decided[index])
        result = move.make(self.visitor.update(update))
        self.visitor.landed(update, landing(result))
        run.taken[id(scheduler)] += 1
        if scheduler is self.scheduler and run.decided[index]:
            run.past = (index, *run.past)
        if all(taken == len(run.times) for taken in run.taken.values()):
            self._finish()
        return result

    def here(self) -> tuple[Step, int] | None:
        """Returns the step and the branch of the denoiser call under way; None outside of a run."""
        if (run := self.run) is None or not run.calls:
            return None
        index = run.taken[id(self.scheduler)]
        return Step(index, run.times, run.past), len(run.calls[index]) - 1

    def skipped(self) -> None:
        """Notes that the call under way skips what a finer site has to skip."""
        assert self.run is not None
        self.run.calls[self.run.taken[id(self.scheduler)]][-1] = False

    def _running(self) -> Run | None:
        """Returns the run, after checking that it is still this thread's and this scheduler's."""
        if self.pipe.scheduler is not self.scheduler:
            raise AttachError(
                f"the scheduler was replaced by a {type(self.pipe.scheduler).__name__} after attach; "
                "close() the handle and attach again"
            )
        if self.run is not None and self.run.thread != threading.get_ident():
            raise AttachError(
                "this pipeline is used by two threads at once; give each thread a pipeline of its own "
                "(type(pipe)(**pipe.components) with its own scheduler shares the weights) and attach to each"
            )
        return self.run

    def _finish(self) -> None:
        if self.run is not None:
            self.calls, self.run = self.run.calls, None
            self.visitor.end()
