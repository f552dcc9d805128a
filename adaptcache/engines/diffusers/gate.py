"""Stands between a pipeline, its denoiser and its scheduler: the only package that touches either."""

from __future__ import annotations

import functools
import itertools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ...distributed import Groups, groups_of
from ...errors import AttachError
from ...hooks import Move, Update, Visitor, landing
from ...step import Step, entering, first_step, times_of
from .placeholders import StandIns
from .watch import (
    SIDES,
    Guard,
    check_plain,
    denoisers_of,
    named,
    plain,
    watch_pipeline,
    watch_scheduler,
    watched_by,
)

# What a gate knows of the run it is in.


@dataclass
class Run:
    """One run, from `set_timesteps` to the last step.

    Arguments:
        thread: Whose run it is.
        taken: How many steps each scheduler has taken, by id; the pipeline's own comes first.
        times: The grid with shape (N,); empty before the first step.
        past: The numbers of the computed steps, newest first.
        decided: Whether the denoiser is called, by step.
        calls: Whether a denoiser call was made, by step and branch.
        groups: The process groups that run the denoiser together.
        sides: How many calls of ControlNets this step had.
        outputs: What branches returned last.
        graph: Whether gradients are kept through the run: what the scheduler landed on wants them.
    """

    thread: int
    taken: dict[int, int]
    times: tuple[float, ...] = ()
    past: tuple[int, ...] = ()
    decided: list[bool] = field(default_factory=list)
    calls: list[list[bool]] = field(default_factory=list)
    groups: Groups = ()
    sides: int = 0
    outputs: StandIns = field(default_factory=StandIns)
    graph: bool = False

    def decide(self, computes: bool) -> None:
        """Begins a step that is computed or skipped."""
        self.decided.append(computes)
        self.calls.append([])
        self.sides = 0

    def call(self, side: bool, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Makes a call of this step, or returns something in its stead.

        Arguments:
            side: Whether it is a ControlNet that is called, not the denoiser.
            original: What makes the call.
            args: What it is called with.
            kwargs: What it is called with, by name.
        """
        number = self.sides if side else len(self.calls[-1])
        others = [(side, earlier) for earlier in range(number)]
        made = self.decided[-1] or (not self.graph and wants_gradient(args, kwargs))
        found = () if made else self.outputs.find((side, number), others, args, kwargs)
        if side:
            self.sides += 1
        else:
            self.calls[-1].append(not found)
        if found:
            return found[0]
        output = original(*args, **kwargs)
        self.outputs.keep((side, number), args, kwargs, output)
        return output


def wants_gradient(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether the first tensor of a call wants a gradient.

    If the run itself keeps none, the call is differentiated on its own, to guide the latents: nothing that
    was returned earlier will do.
    """
    first = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
    return torch.is_grad_enabled() and first is not None and first.requires_grad


# The only code that touches a forward or a scheduler: it skips denoiser calls and lets a visitor decide.
#
# The gate watches the pipeline's scheduler. `set_timesteps` starts a run, `step` ends a step, and the
# denoiser calls in between are the step's branches, in call order. At a skipped step each branch returns
# its last computed output, the guider makes of it what it likes, and `scheduler.step` receives the
# visitor's forecast of the *guided* output instead. So no guider and no architecture is a special case.
#
# Three things change while a gate is open, and change back when it closes:
#
# - the scheduler's class becomes a subclass made here, so that the copies some pipelines make of their
#   scheduler (one for video, one for audio) are watched too;
# - so does the pipeline's, as only its `__call__` knows of a run that was broken off, and of two threads;
# - the denoiser's `_compiled_call_impl`, which `nn.Module.__call__` asks first, becomes a `Guard`. It
#   stands outside of hooks, offloading and compiled code: none of them sees it, a skip runs none of them.
#   ControlNets are guarded as well: what they compute only serves the denoiser.
#
# The class is longer than ours are: one step is followed through `start`, `call`, `step` and `finish` in turn.


class Gate:
    """Watches one pipeline for one visitor, from `open` to `close`."""

    _starts = itertools.count()

    def __init__(
        self,
        pipe: Any,
        visitor: Visitor,
        called: Callable[[Mapping[str, Any]], None] = lambda arguments: None,
    ) -> None:
        """Prepares a gate.

        Arguments:
            pipe: The pipeline.
            visitor: Who decides.
            called: Told the arguments of each call of the pipeline before it is made; may refuse it.
        """
        self.pipe, self.visitor, self.scheduler = pipe, visitor, getattr(pipe, "scheduler", None)
        self.called = called
        self.run: Run | None = None  # set from `set_timesteps` to the last step
        self.started = 0  # orders the runs of gates in one thread: a callback may call another pipeline
        self.apart = False  # while a callback has its say
        self.closed = False
        self.calls: list[list[bool]] = []  # of the last run
        # What makes the calls of a denoiser, by its id, where a site skips some of them; and, of a batch of
        # two halves with and without the prompt: whether only the half with it goes through the denoiser now.
        self.within: dict[int, Callable[..., Any]] = {}
        self.half: bool | None = None
        self._undo, self._guards = ExitStack(), ExitStack()
        self.caller = threading.RLock()  # held while the pipeline is called

    @property
    def denoisers(self) -> list[nn.Module]:
        """The denoisers the pipeline has now."""
        return denoisers_of(self.pipe)

    @property
    def running(self) -> bool:
        """Whether a run is going on in this thread, and it is its loop that is heard."""
        return self.run is not None and self.run.thread == threading.get_ident() and not self.apart

    def open(self) -> Gate:
        """Starts watching; changes nothing when it raises."""
        denoisers_of(self.pipe)
        check_plain(self.scheduler)
        for part in (self.pipe, self.scheduler):
            if watched_by(part):
                name = type(part).__name__
                raise AttachError(
                    f"the {name} of this pipeline is attached already; close() that handle first"
                )
            part.__class__ = plain(part)  # a copy of one that was attached
        with ExitStack() as undo:
            undo.callback(lambda: self._guards.close())
            self._guard()
            watch_scheduler(self.scheduler, self, undo)
            if callable(self.pipe):
                watch_pipeline(self.pipe, self, undo)
            self._undo = undo.pop_all()
        return self

    def close(self) -> None:
        """Puts everything back. Safe to call twice."""
        self.closed = True
        self._undo.close()
        self.finish()

    def _guard(self) -> None:
        """Guards the modules the pipeline has now: they may have been compiled since the last run."""
        modules = [*denoisers_of(self.pipe), *named(self.pipe, SIDES)]
        if all((guard := Guard.of(module)) and self in guard.gates for module in modules):
            return
        self._guards.close()
        with ExitStack() as undo:
            for module in modules:
                Guard.stand(module, self, undo)
            self._guards = undo.pop_all()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Stands around what is not the pipeline's loop: a callback may call the denoiser, or a pipeline."""
        before, self.apart = self.apart, True
        try:
            yield
        finally:
            self.apart = before

    def start(self, scheduler: Any) -> None:
        """`set_timesteps` was called: a run starts."""
        if self.apart:
            return
        if scheduler is self.scheduler:
            self.finish()  # a run of a loop of the caller's own was abandoned
            self._guard()
            groups = groups_of(denoisers_of(self.pipe))
            self.run = Run(threading.get_ident(), {id(scheduler): 0}, groups=groups)
            self.started = next(self._starts) + 1
        elif self.run is not None and self.running:  # a copy the pipeline made, for its other latents
            self.run.taken[id(scheduler)] = 0

    def call(self, module: nn.Module, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """A guarded module was called: call it, or return something in its stead."""
        run = self.run
        assert run is not None
        index = run.taken[id(self.scheduler)]
        if index == len(run.decided):
            step = Step(index, run.times, run.past, x=entering(args, kwargs), groups=run.groups)
            run.decide(self.visitor.computes(step) or index == 0)
        if within := self.within.get(id(module)):
            original = functools.partial(within, original)
        return run.call(module in named(self.pipe, SIDES), original, args, kwargs)

    def step(self, move: Move) -> Any:
        """`scheduler.step` was called: hand it the output that the visitor chooses."""
        run, scheduler = self.run, move.scheduler
        if run is None or self.apart or (scheduler is not self.scheduler and not self.running):
            return move.make(move.u)
        if not self.running:
            raise AttachError("this pipeline is used by two threads at once; give each thread its own")
        index = run.taken.setdefault(id(scheduler), 0)
        if index >= len(run.decided):
            raise AttachError(
                f"{type(scheduler).__name__} stepped before the denoiser was called (step {index}): "
                "adaptcache needs a pipeline that calls its denoiser before each step of its own scheduler, "
                "and loops that take turns in one thread need a denoiser each"
            )
        if not run.times:
            first = first_step(self.scheduler, move.bound.arguments["timestep"])
            run.times = times_of(self.scheduler)[first:]
            self.visitor.begin(run.times)
        track = list(run.taken).index(id(scheduler))
        update = Update(Step(index, run.times, run.past), track, move, run.decided[index])
        result = move.make(self.visitor.update(update))
        y = landing(result)
        self.visitor.landed(update, y)
        run.graph = y.requires_grad
        run.taken[id(scheduler)] += 1
        if scheduler is self.scheduler and run.decided[index]:
            run.past = (index, *run.past)
        if all(taken == len(run.times) for taken in run.taken.values()):
            self.finish()
        return result

    def here(self) -> tuple[Step, int] | None:
        """Returns the step and the branch of the denoiser call under way; None outside of a run."""
        if (run := self.run) is None or not self.running or not run.calls:
            return None
        index = run.taken[id(self.scheduler)]
        return Step(index, run.times, run.past, groups=run.groups), len(run.calls[-1]) - 1

    def skipped(self) -> None:
        """Notes that the call under way skips what a finer site has to skip."""
        assert self.run is not None
        self.run.calls[-1][-1] = False

    def finish(self) -> None:
        """The run is over, or was abandoned. Safe to call twice."""
        if self.run is not None:
            self.calls, self.run = self.run.calls, None
            self.visitor.end()
