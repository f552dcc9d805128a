"""Follows the denoising loops of one pipeline: skips denoiser calls and lets a hook decide.

The pipeline's own call opens the gate in its thread; `scheduler.set_timesteps` announces a loop, the first denoiser
call after that starts it, and every `scheduler.step` is followed by the timestep it is given. The denoiser calls
between two steps are the step's branches, in call order. At a skipped step each branch returns a placeholder, the
guider makes of it what it likes, and `scheduler.step` receives the hook's forecast of the *guided* output instead.
So no guider and no architecture is a special case.

What changes while a gate is open, and changes back when it closes: methods of the classes of the pipeline and its
schedulers (`watch`), and what `nn.Module.__call__` asks first of each denoiser and ControlNet. That is outside of
hooks, offloading and compiled code: none of them sees it, a skip runs none of them.
"""

from __future__ import annotations

import copy
import functools
import inspect
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ...distributed import Groups, groups_of
from ...errors import AttachError, LoopError
from ...hooks import SchedulerStep, StepHook
from ...runs import plain
from ...sites.interceptor import ModuleInterceptor
from ...sites.outputs import split_tensors
from ...step import Step, entering
from .calls import named_arguments
from .components import TIMES, denoisers_of, find_controlnets, find_denoisers, find_schedulers, is_scheduler
from .grid import CLOSE, times_of
from .sampler import set_levels
from .watch import check_plain, watch, watched

VIEWS = (
    "{name} steps its scheduler several times at timestep {t:g} (views of a panorama, tiles?), which {hook} cannot "
    "keep apart: calibrate on the plain pipeline of the same model, and attach that schedule here"
)
LOST = (
    "{scheduler} was given timestep {t:g}, which is neither the next one of its grid nor the one before (step "
    "{index} of {steps}): this loop cannot be followed; close() the handle, or run it inside of handle.paused()"
)
EARLY = (
    "{scheduler} stepped before the denoiser was called (step {index}): adaptcache needs a pipeline that calls its "
    "denoiser before each step of its own scheduler, and loops that take turns in one thread need a denoiser each"
)
APART = (
    "{scheduler} was given timestep {t:g} while other latents of this call are at step {index}: latents that are "
    "denoised at different times (diffusion forcing?) cannot be followed; close() the handle, or run it inside of "
    "handle.paused()"
)
STRANGER = (
    "a {scheduler} that is no component of {name} stepped at step {index}, which was skipped: what it was given may "
    "be no true output; make it a component of the pipeline (pipe.{attribute} = ...) and attach again"
)
UNSET = (
    "{scheduler} stepped through timesteps that were set before this call: call set_timesteps within it (in a loop of "
    "your own, inside of handle.loop())"
)
WITHIN = "handle.loop() is open, which is for one loop of your own: call {name}, or open it again, after its end"
AGAIN = (
    "{name} was called by a callback of its own call, which shares its scheduler: make that call inside of "
    "handle.paused(), or with a pipeline of its own"
)
THREADS = (
    "this pipeline is used by two threads at once; give each thread a pipeline of its own "
    "(type(pipe)(**pipe.components) with its own scheduler shares the weights) and attach to each"
)


KEPT = "_adaptcache"  # the attribute of a pipeline that keeps its gate


class Keeper:
    """Keeps a gate alive as long as its pipeline; copies and pickles of the pipeline keep nothing."""

    def __init__(self, gate: Gate | None = None) -> None:
        self.gate = gate

    def __reduce__(self) -> Any:
        return Keeper, ()


class LoopDone(BaseException):
    """The hook has followed the one loop of a call that it wants, and another one begins."""


# The denoiser calls of a loop, by step and branch: the component that was called, and whether the call was made.
LoopCalls = list[list[tuple[str, bool]]]


class Track:
    """The latents that one scheduler steps, followed by the timesteps that it is given.

    The timestep that a denoiser is given will not do: Flux and Qwen-Image cast it to the latents' dtype, and in
    bfloat16 neighbouring steps collide. The scheduler's own list is exact.

    Arguments:
        scheduler: The scheduler, after `set_timesteps`.
        timestep: What its first step is given: above the first of the grid for image-to-image.
        number: Which latents: 0 for those of the pipeline's main scheduler.
    """

    def __init__(self, scheduler: Any, timestep: Any, number: int = 0) -> None:
        self.scheduler, self.number = scheduler, number
        begin = getattr(scheduler, "begin_index", None)
        self.begin = int(begin) if begin is not None else self._find(timestep)
        self.taken = 0  # how many times of the grid it has stepped
        self.view = 0  # how often it has stepped at the last one, less one

    def _find(self, timestep: Any) -> int:
        """Returns the first place in the grid that has a timestep."""
        grid = self.scheduler.timesteps
        if (known := offset_in(grid, timestep)) is not None:
            return known
        value, steps = number_of(timestep), grid.tolist()
        largest = max(map(abs, steps), default=1.0)
        return next((i for i, t in enumerate(steps) if abs(t - value) <= CLOSE * largest), 0)

    def is_at(self, timestep: Any, index: int) -> bool:
        """Whether a timestep is that of step `index` of the run. Syncs only where it is no part of the grid."""
        grid, at = self.scheduler.timesteps, self.begin + index
        if at >= len(grid):
            return False
        if (known := offset_in(grid, timestep)) is not None and known == at:
            return True
        scale = max(abs(float(grid.max())), 1e-12) if grid.device.type == "cpu" else 1000.0
        return abs(number_of(timestep) - float(grid[at])) <= CLOSE * scale

    def ratio(self) -> float:
        """Returns the second timestep over the first; 0 where they are the same or there is none."""
        grid = self.scheduler.timesteps[self.begin : self.begin + 2].tolist()
        return grid[1] / grid[0] if len(grid) == 2 and grid[0] and grid[0] != grid[1] else 0.0


class OutputPlaceholders:
    """Gives what a denoiser call returns at a skipped step: something of the right type, structure and shape.

    The pipeline makes a guided output of it, which is thrown away, so the values do not matter. Where the
    branch was called before with as many samples it is what it returned then, unchanged. A guidance interval
    that ends can halve a batch, or call a branch for the first time: then it is cut or borrowed.
    """

    def __init__(self) -> None:
        self.kept: dict[tuple[bool, int], tuple[tuple[Any, ...], Any]] = {}  # by branch: shape of its input, output

    def tensors(self) -> list[Tensor]:
        """Returns the tensors that are kept."""
        return [tensor for _, output in self.kept.values() for tensor in split_tensors(output)[1]]

    def find(self, side: bool, number: int, shape: tuple[Any, ...]) -> tuple[Any, ...]:
        """Returns a placeholder, in a tuple that is empty where there is none and the call has to be made.

        A branch of the denoiser, or of a ControlNet (`side`), is called with such latents; earlier ones lend theirs.
        """
        known = [self.kept[side, branch] for branch in (number, *range(number)) if (side, branch) in self.kept]
        for given, output in known:
            if given == shape:
                return (output,)
        for given, output in known:
            if given[1:] == shape[1:]:
                with suppress(LookupError):
                    return (resized(output, given, shape[0]),)
        return ()


@dataclass
class Loop:
    """One denoising loop, from its first denoiser call to its last step."""

    schedulers: list[Any]  # those whose timesteps were set for it
    groups: Groups = ()  # the process groups that run the denoiser together
    tracks: dict[int, Track] = field(default_factory=dict)  # by the id of a scheduler that has stepped
    lead: Track | None = None  # the first of them, which tells the step
    times: tuple[float, ...] = ()  # the grid with shape (N,); empty before the first step
    past: tuple[int, ...] = ()  # the numbers of the computed steps, newest first
    decided: list[bool] = field(default_factory=list)  # whether the denoiser is called, by step
    calls: LoopCalls = field(default_factory=list)
    views: int = 0  # how many views a time has; 0 until the first one is done
    view: int = 0  # the view under way
    time: float | None = None  # the time argument of the first denoiser call
    branch: int = -1  # the number of the denoiser call under way among those of its view
    sides: int = 0  # how many calls of ControlNets this view had
    samples: int = 0  # how many samples its denoiser calls had, all together
    first: Tensor | None = None  # what the first of them returned, where the hook reads that
    stepped: bool = False  # whether a scheduler has stepped since the last denoiser call
    outputs: OutputPlaceholders = field(default_factory=OutputPlaceholders)  # what branches returned last
    graph: bool = False  # whether gradients are kept through the run: what the scheduler landed on requires them
    told: bool = True  # whether the hook follows it

    @property
    def index(self) -> int:
        """The number of the step whose denoiser calls are under way, or were made last."""
        return len(self.decided) - 1

    def begin_view(self, view: int) -> None:
        """The first denoiser call of a view is about to be made."""
        self.view, self.branch, self.sides, self.samples, self.stepped = view, -1, 0, 0, False
        self.first = None

    def cond(self, u: Tensor) -> Tensor | None:
        """Returns what guidance made `u` of, beside one output more: the output of the first of two calls, or the
        second half of that of a batch of both. None where it was otherwise."""
        if self.first is None or self.samples != 2 * len(u):
            return None
        output = self.first.chunk(2)[1] if self.branch == 0 else self.first
        return output.reshape(u.shape) if self.branch < 2 and output.numel() == u.numel() else None

    def same_time(self, args: Any, kwargs: Any) -> bool:
        """Whether a denoiser call after a step is for another view at the same time. Syncs once a loop at most."""
        if self.views:
            return self.view + 1 < self.views
        now, lead = time_argument(args, kwargs), self.lead
        same = False
        if now is not None and self.time is not None and lead is not None and (ratio := lead.ratio()):
            later = torch.tensor(self.time * ratio).to(now.dtype)  # where rounding hides the next step, none is told
            same = largest(now) == self.time != float(later)
        if not same:
            self.views = self.view + 1
        return same


@dataclass
class DiffusersStep(SchedulerStep):
    """A call of `scheduler.step` under way: the scheduler, its method, and the arguments by name."""

    scheduler: Any
    method: Callable[..., Any]
    arguments: Mapping[str, Any]

    def run(self, u: Tensor) -> Any:
        """Steps the scheduler with the model output `u` and returns what it returns."""
        return self.method(self.scheduler, **{**self.arguments, "model_output": u})

    def preview(self, u: Tensor) -> Tensor:
        # Brownian trees do not survive a copy, nor need one: an interval has the same noise every time.
        shared = {id(value): value for value in vars(self.scheduler).values() if callable(value)}
        # Latents that are kept in single precision stay in it where the outputs are in half (Wan).
        x = self.x if u.dtype == self.u.dtype else self.x.to(u.dtype)
        arguments = {**self.arguments, "model_output": u, "sample": x}
        if (generator := arguments.get("generator")) is not None:
            many = isinstance(generator, list)
            arguments["generator"] = [g.clone_state() for g in generator] if many else generator.clone_state()
        on_cpu = u.device.type == "cpu"
        with torch.random.fork_rng([] if on_cpu else [u.device], device_type="cuda" if on_cpu else u.device.type):
            return landing(self.method(copy.deepcopy(self.scheduler, shared), **arguments))


def landing(result: Any) -> Tensor:
    """Returns the latents in what `scheduler.step` returned."""
    latents: Tensor = result[0] if isinstance(result, tuple) else result.prev_sample
    return latents


class Gate:
    """Watches one pipeline for one hook, from `open` to `close`."""

    _starts = itertools.count(1)

    def __init__(
        self, pipe: Any, hook: StepHook, on_call: Callable[[Mapping[str, Any]], Any] = lambda arguments: None,
        changed: Callable[[], bool] = lambda: False,
    ) -> None:  # fmt: skip
        """Prepares a gate.

        Arguments:
            on_call: Called with the arguments of each call of the pipeline before it is made; may refuse it.
            changed: Whether the pipeline is another one than at `on_call`. Asked after calls with callbacks.
        """
        self.pipe, self.hook, self.on_call, self.changed = pipe, hook, on_call, changed
        # Whether the hook wants to know where the scheduler lands; one that forwards to another does.
        self.lands = getattr(type(hook), "on_step_end", None) is not StepHook.on_step_end
        self.schedulers: list[Any] = []  # as they were when the gate was opened
        self.denoisers: list[nn.Module] = []  # as they were when the call under way began
        self.loop: Loop | None = None  # from `set_timesteps` to the last step
        self.done: list[LoopCalls] = []  # the loops of the call under way, or of the last one
        self.thread: int | None = None  # where its loop is under way: None outside of a call, and in its callbacks
        self.arguments: Mapping[str, Any] = {}  # of that call; empty outside of one
        self.followed = 0  # the steps of the loop of this call that the hook was told of last
        self.stepped = 0  # loops of this call that are over and had steps: a call may only fill a key-value cache
        self.started = 0  # orders the calls of gates in one thread: a callback may call another pipeline
        self.called = self.closed = self.stepping = False
        self.own_loop = False  # whether that call is a loop of the user's own
        self.pauses: list[None] = []  # one for each `paused()` that is open, in any thread
        self.called_back = False  # whether this call had a callback
        # What makes the calls of a denoiser, by its id, where a site skips some of them; and, of a batch of
        # two halves with and without the prompt: whether only the half with it goes through the denoiser now.
        self.within: dict[int, Callable[..., Any]] = {}
        self.half: bool | None = None
        self._undo, self._guards, self._copies = ExitStack(), ExitStack(), ExitStack()
        self.caller = threading.RLock()  # held while the pipeline is called
        self._names: dict[int, str] = {}
        self._sides: set[int] = set()
        self._last: list[Any] = []  # the schedulers of the last loop
        self._announced = False

    # What sites ask

    @property
    def running(self) -> bool:
        """Whether a call of the pipeline is under way in this thread, and not one of its callbacks."""
        return self.thread == threading.get_ident()

    def here(self) -> tuple[Step, int] | None:
        """Returns the step and the branch of the denoiser call under way; None outside of a loop."""
        if (loop := self.loop) is None or not self.running or not loop.decided:
            return None
        return Step(loop.index, loop.times, loop.past, groups=loop.groups), loop.branch

    def skipped(self) -> None:
        """Notes that the call under way skips what a finer site has to skip."""
        assert self.loop is not None
        calls = self.loop.calls[-1]
        calls[-1] = calls[-1][0], False

    # Opening and closing

    def open(self) -> Gate:
        """Starts watching; changes nothing when it raises."""
        denoisers_of(self.pipe)
        self.schedulers = list({id(one): one for one in find_schedulers(self.pipe).values()}.values())
        for scheduler in self.schedulers:
            check_plain(scheduler)
        with ExitStack() as undo:
            undo.callback(lambda: self._guards.close())
            self._guard()
            for scheduler in self.schedulers:
                watch(scheduler, self, SCHEDULER, undo)
            if callable(self.pipe):
                watch(self.pipe, self, {"__call__": _call}, undo)
            vars(self.pipe)[KEPT] = Keeper(self)
            undo.callback(vars(self.pipe).pop, KEPT, None)
            self._undo = undo.pop_all()
        return self

    def close(self) -> None:
        """Puts everything back. Safe to call twice."""
        self.closed, self.thread = True, None
        self._undo.close()
        self._copies.close()
        self.finish()

    def __del__(self) -> None:
        with suppress(Exception):  # deleted with its pipeline, before the handle was closed
            self.close()

    def _guard(self) -> None:
        """Guards the modules the pipeline has now: they may have been compiled or replaced since the last run."""
        denoisers, sides = find_denoisers(self.pipe), find_controlnets(self.pipe)
        named, self.denoisers = denoisers | sides, list(denoisers.values())
        self._names = {id(module): name for name, module in named.items()}
        self._sides = set(map(id, sides.values()))
        if all((found := ModuleInterceptor.of(module)) and found.serves(self) for module in named.values()):
            return
        self._guards.close()
        with ExitStack() as undo:
            for module in named.values():
                ModuleInterceptor.install(module, self, self.denoiser_called, undo)
            self._guards = undo.pop_all()

    # A call of the pipeline

    @contextmanager
    def calling(self, arguments: Mapping[str, Any], own_loop: bool = False) -> Iterator[None]:
        """Stands around a call of the pipeline, or a loop of the user's own.

        Raises:
            AttachError: Another thread is calling it, or it was called and nothing could have been skipped.
        """
        if self.closed:
            raise AttachError("this handle is closed: attach again")
        if not self.caller.acquire(blocking=False):
            raise AttachError(THREADS)
        try:
            if self.called and self.thread is None:
                raise AttachError(AGAIN.format(name=type(self.pipe).__name__))
            if self.called and self.own_loop:
                raise AttachError(WITHIN.format(name=type(self.pipe).__name__))
            if self.called:  # a `__call__` that calls that of its base
                yield
                return
            try:
                self._check_schedulers()
                self.arguments = plain(arguments)
                self.on_call(self.arguments)
                self.called, self.thread, self.called_back = True, threading.get_ident(), False
                self.own_loop = own_loop
                self.started, self._announced, self.done = next(self._starts), False, []
                self.followed = self.stepped = 0
                self._guard()
                yield
                self._check_used()
                if self.called_back and not self.closed and self.changed():
                    self.hook.on_change("weights or settings of the pipeline")
            finally:
                self.finish()  # broken off, or stopped before the end of the grid
                self._copies.close()
                self.arguments, self.called, self.thread = {}, False, None
        finally:
            self.caller.release()

    def _check_schedulers(self) -> None:
        known, now = (
            {id(one): one for one in found} for found in (self.schedulers, find_schedulers(self.pipe).values())
        )
        for scheduler in now.values():
            check_plain(scheduler)
            if id(scheduler) not in known:
                raise AttachError(
                    f"the scheduler was replaced by a {type(scheduler).__name__} after attach; "
                    "close() the handle and attach again"
                )
        if missing := [one for one in self.schedulers if id(one) not in now]:
            raise AttachError(
                f"the {type(missing[0]).__name__} of this pipeline was removed after attach; "
                "close() the handle and attach again"
            )

    def _check_used(self) -> None:
        """Raises where a call went past the gate: a schedule never silently does nothing."""
        name, loop = type(self.pipe).__name__, self.loop
        if loop is not None and loop.decided and not loop.tracks and not self.done:
            raise AttachError(
                f"{name} called its denoiser but not the step() of its scheduler, which was replaced after "
                "attach (by another library?): nothing could be skipped; close() the handle"
            )
        if self.hook.own_times and loop is not None and not loop.decided and not self.done:
            self.hook.on_run_start(())  # no step was left of its times: it says so
        if not self._announced and not self.closed:
            raise AttachError(f"{name} did not use its scheduler: nothing could be skipped; close() the handle")

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Stands around what is not the pipeline's loop: a callback may call the denoiser, or a pipeline."""
        before, self.thread = self.thread, None
        try:
            yield
        finally:
            self.thread = None if self.closed else before

    def aside_callback(self, callback: Any) -> Any:
        """Returns a callback that runs aside from the loop.

        A callback that calls the denoiser, or another pipeline that has the same one, would be taken for the
        loop: it would get outputs of earlier steps, and push the steps of the run out of place.
        """
        if isinstance(callback, (PipelineCallback, MultiPipelineCallbacks)):
            return _AsideCallback(self, callback)  # pipelines ask these which tensors they want

        def call(*args: Any, **kwargs: Any) -> Any:
            return self.call_back(callback, args, kwargs)

        return functools.update_wrapper(call, callback)

    def call_back(self, callback: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Calls a callback aside from the loop; tells the hook what it changed, in place or by what it returns."""
        given = dict(_named_tensors((*args, *kwargs.values())))
        before, numbers = {name: _version(one) for name, one in given.items()}, _numbers(vars(self.pipe))
        with self.aside():
            result = callback(*args, **kwargs)
        self.called_back = True
        changed = [name for name, one in given.items() if _version(one) != before[name]]
        changed += [name for name, one in _named_tensors([result]) if not _same(one, given.get(name))]
        now = _numbers(vars(self.pipe))
        changed += [name.lstrip("_") for name in now if now[name] != numbers.get(name)]
        if changed and not self.closed:
            self.hook.on_change(", ".join(changed))
        return result

    # The loop

    def adopt(self, scheduler: Any) -> None:
        """Watches a copy that the pipeline made of a scheduler during its call, until the call ends."""
        if is_scheduler(scheduler):
            watch(scheduler, self, SCHEDULER, self._copies)

    def timesteps_set(self, scheduler: Any) -> None:
        """`set_timesteps` was called: a loop is about to begin."""
        self._announced = True
        if self.hook.own_times and scheduler.timesteps is not None:
            self.hook.on_grid(times_of(scheduler))
            set_levels(scheduler, self.hook.own_times)
        if (loop := self.loop) is None or loop.decided:
            self.finish()
            self.loop = Loop([scheduler], groups_of(self.denoisers))
        elif all(scheduler is not one for one in loop.schedulers):  # a second one, for other latents
            loop.schedulers.append(scheduler)

    def denoiser_called(self, module: nn.Module, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """A guarded module was called: calls it, or returns a placeholder."""
        if (loop := self.loop) is None:
            if not self.done:
                return original(*args, **kwargs)  # before any timesteps: not the loop
            loop = self.loop = Loop(self._last)  # the same grid once more
        if self.followed and not loop.decided and not self.hook.follows_loops:
            # A hook that does not follow every grid has followed its own by now.
            shorter = len(times_of(loop.schedulers[0])) <= self.followed
            if self.hook.loop is not None or shorter or not self.hook.follows(()):
                self.loop = None
                raise LoopDone
        side = id(module) in self._sides
        if not loop.decided or (loop.stepped and not loop.same_time(args, kwargs)):
            self._begin_step(loop, args, kwargs)
        elif loop.stepped:
            loop.begin_view(loop.view + 1)
        if within := self.within.get(id(module)):
            original = functools.partial(within, original)
        return self._call(loop, side, self._names.get(id(module), "denoiser"), original, args, kwargs)

    def _begin_step(self, loop: Loop, args: Any, kwargs: Any) -> None:
        index = len(loop.decided)
        if index == 0 and (time := time_argument(args, kwargs)) is not None:
            loop.time = largest(time)
        x = entering(args, kwargs) if self.hook.reads_input else None
        step = Step(index, loop.times, loop.past, x=x, groups=loop.groups)
        loop.decided.append(not loop.told or self.hook.should_compute(step) or index == 0)
        loop.calls.append([])
        loop.begin_view(0)

    def _call(self, loop: Loop, side: bool, name: str, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Makes a call of this step, or returns a placeholder; a ControlNet is a side of the denoiser."""
        number, shape = loop.sides if side else loop.branch + 1, shape_of_latents(args, kwargs)
        made = loop.decided[-1] or (not loop.graph and wants_gradient(args, kwargs))
        found = () if made else loop.outputs.find(side, number, shape)
        if side:
            loop.sides += 1
        else:
            loop.branch, loop.samples = number, loop.samples + shape[0]
            loop.calls[-1].append((name, not found))
        if found:
            return found[0]
        output = original(*args, **kwargs)
        loop.outputs.kept[side, number] = shape, output
        if self.hook.reads_branches and number == 0 and not side:
            loop.first = first_output(output)
        return output

    def scheduler_called(self, scheduler: Any, method: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
        """`scheduler.step` was called: hands it the output that the hook chooses."""
        loop = self.loop
        if arguments.get("pred_original_sample") is not None and (loop is None or id(scheduler) in loop.tracks):
            return method(scheduler, **arguments)  # the step before once more, by what was made of where it led
        if loop is None or not loop.decided:
            if scheduler is not self.schedulers[0]:
                return method(scheduler, **arguments)  # a loop without a denoiser: nothing was skipped
            says = EARLY if self._announced else UNSET
            raise LoopError(says.format(scheduler=type(scheduler).__name__, index=0))
        track = self._follow(loop, scheduler, arguments["timestep"])
        index = track.taken - 1
        computed = loop.decided[index]
        past = loop.past[loop.past[:1] == (index,) :]  # another scheduler may have stepped here already
        step = DiffusersStep(
            Step(index, loop.times, past, track=track.number), track.number, track.view, computed,
            arguments["sample"], arguments["model_output"], scheduler, method, arguments,
        )  # fmt: skip
        step.branches = loop.samples / max(1, len(step.x))
        step.cond = loop.cond(step.u) if computed and track.number == 0 else None
        step.made = not computed and all(made for _, made in loop.calls[index])
        self.stepping = True
        try:
            result = step.run(self.hook.model_output(step) if loop.told else step.u)
            latents = landing(result)
            if loop.told and self.lands:
                self.hook.on_step_end(step, latents)
        finally:
            self.stepping = False
        loop.graph, loop.stepped = latents.requires_grad, True
        if track is loop.lead and computed and track.view == 0:
            loop.past = (index, *loop.past)
        if track.taken == len(loop.times) and (
            len(loop.times) > 1 or all(id(one) in loop.tracks for one in loop.schedulers)
        ):
            tracks = loop.tracks.values()
            if all(one.taken == len(loop.times) and one.view + 1 >= loop.views for one in tracks):
                self.finish()
        return result

    def _follow(self, loop: Loop, scheduler: Any, timestep: Any) -> Track:
        """Returns the track of a scheduler, moved to the step of the timestep it is given."""
        track = loop.tracks.get(id(scheduler)) or self._begin_track(loop, scheduler, timestep)
        name, next_one = type(scheduler).__name__, track.is_at(timestep, track.taken)
        if next_one and track.taken < len(loop.decided):
            if track is loop.lead and track.taken == 1:
                loop.views = track.view + 1
            track.taken, track.view = track.taken + 1, 0
        elif track.taken and track.is_at(timestep, track.taken - 1):
            track.view += 1
            self._check_view(loop, track, number_of(timestep))
        elif next_one:
            raise LoopError(EARLY.format(scheduler=name, index=track.taken))
        else:
            t, steps = number_of(timestep), len(loop.times)
            raise LoopError(LOST.format(scheduler=name, t=t, index=track.taken, steps=steps))
        if track.taken != len(loop.decided):
            raise LoopError(APART.format(scheduler=name, t=number_of(timestep), index=loop.index))
        return track

    def stranger_called(self, scheduler: Any) -> None:
        """A scheduler that is not watched steps in the course of a loop: refused where it is given a placeholder."""
        if (loop := self.loop) is None or not loop.decided or loop.decided[-1]:
            return
        kind, name = type(scheduler).__name__, type(self.pipe).__name__
        raise LoopError(STRANGER.format(scheduler=kind, name=name, index=loop.index, attribute="other_scheduler"))

    def _begin_track(self, loop: Loop, scheduler: Any, timestep: Any) -> Track:
        """Returns the track of a scheduler that steps for the first time; the first one of a loop starts its run."""
        main = self.schedulers[0]
        reserved = scheduler is not main and any(one is main for one in loop.schedulers)
        number = next(
            n for n in itertools.count(int(reserved)) if all(n != one.number for one in loop.tracks.values())
        )
        track = loop.tracks[id(scheduler)] = Track(scheduler, timestep, number)
        if loop.lead is None:
            loop.lead = track
            loop.times = times_of(scheduler)[track.begin :]
            loop.told = self.hook.loop in (None, self.stepped) and self.hook.follows(loop.times)
            if loop.told:
                self.followed = len(loop.times)
                self.hook.on_run_start(loop.times)
        return track

    def _check_view(self, loop: Loop, track: Track, t: float) -> None:
        """Refuses another view that the hook cannot follow; corrects what looked like the next step and was a view."""
        name, hook = type(self.pipe).__name__, type(self.hook).__name__
        new = loop.views and track.view >= loop.views and not loop.decided[track.taken - 1]
        if not self.hook.follows_views or new:
            raise LoopError(VIEWS.format(name=name, t=t, hook=hook))
        if len(loop.decided) == track.taken:
            return
        if not loop.decided.pop() and loop.decided[-1]:
            raise LoopError(VIEWS.format(name=name, t=t, hook=f"{hook}, which skips the step after it,"))
        last = loop.calls.pop()
        loop.calls[-1] += last
        loop.view = track.view

    def finish(self) -> None:
        """The loop is over, or was abandoned. Safe to call twice."""
        if (loop := self.loop) is None:
            return
        self.loop = None
        if loop.decided:
            self._last = loop.schedulers
            self.done.append(loop.calls)
            self.stepped += bool(loop.tracks)
            if loop.told:
                self.hook.on_run_end()


class _AsideCallback(MultiPipelineCallbacks):  # type: ignore[misc]
    """A callback object of diffusers, run aside from the loop."""

    def __init__(self, gate: Gate, callback: Any) -> None:
        super().__init__([callback])
        self.gate = gate

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.gate.call_back(super().__call__, args, kwargs)


def _named_tensors(values: Iterable[Any]) -> Iterator[tuple[str, Tensor]]:
    """Yields the tensors that a callback is given or returns: those in a mapping by name, others by number."""
    for number, value in enumerate(values):
        named = value if isinstance(value, Mapping) else {f"argument {number}": value}
        yield from ((name, one) for name, one in named.items() if isinstance(one, Tensor))


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _same(new: Tensor, old: Tensor | None) -> bool:
    """Whether a tensor that a callback returns is the one that it was given. Syncs where it is another object."""
    return new is old or (old is not None and new.dtype == old.dtype and torch.equal(new, old))


def _numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the numbers among the attributes of a pipeline, a scale of guidance, say; and those within mappings."""
    kept = {k: v for k, v in values.items() if isinstance(v, (int, float, dict)) and k != "_interrupt"}
    return {k: _numbers(v) if isinstance(v, dict) else v for k, v in kept.items()}


# What the classes of a pipeline and its schedulers are made to do, for the objects that are watched


def _set_timesteps(original: Any) -> Any:
    @functools.wraps(original)  # pipelines ask for the names of its arguments
    def set_timesteps(self: Any, *args: Any, **kwargs: Any) -> Any:
        gate, result = watched.get(id(self)), original(self, *args, **kwargs)
        if gate is not None and gate.running:
            gate.timesteps_set(self)
        return result

    return set_timesteps


def _step(original: Any) -> Any:
    known = inspect.signature(original).parameters.values()
    names = [one.name for one in known if one.kind is one.POSITIONAL_OR_KEYWORD][1:]

    @functools.wraps(original)
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        if (gate := watched.get(id(self))) is None:
            here = {id(one): one for one in tuple(watched.values()) if one.running and not one.stepping}
            if here:
                max(here.values(), key=lambda one: one.started).stranger_called(self)
            return original(self, *args, **kwargs)
        arguments = {**dict(zip(names, args, strict=False)), **kwargs}
        complete = len(arguments) == len(args) + len(kwargs) and STEPPED <= arguments.keys()
        if gate.thread != threading.get_ident() or gate.stepping or not complete:
            return original(self, *args, **kwargs)  # a subclass calls the step of its base; or it says what is wrong
        return gate.scheduler_called(self, original, arguments)

    return step


def _deepcopy(original: Any) -> Any:
    def __deepcopy__(self: Any, memo: dict[int, Any]) -> Any:
        if original is not None:
            other = original(self, memo)
        else:
            other = copy._reconstruct(self, memo, *self.__reduce_ex__(4))  # type: ignore[attr-defined]
        gate = watched.get(id(self))
        if gate is not None and gate.running and not gate.stepping:
            gate.adopt(other)  # for the pipeline's other latents, or for one of its frames
        return other

    return __deepcopy__


def _call(original: Any) -> Any:
    signature = inspect.signature(original)

    @functools.wraps(original)
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        gate = watched.get(id(self))
        if gate is None or gate.pauses:
            return original(self, *args, **kwargs)
        try:
            bound = signature.bind(self, *args, **kwargs)
        except TypeError:
            return original(self, *args, **kwargs)  # which says what is wrong with the call
        with gate.calling(named_arguments(bound)):
            for name, value in bound.arguments.items():
                if name in CALLBACKS and value is not None:
                    bound.arguments[name] = gate.aside_callback(value)
                elif bound.signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
                    more = {n: gate.aside_callback(v) for n, v in value.items() if n in CALLBACKS and v is not None}
                    bound.arguments[name] = {**value, **more}
            return original(*bound.args, **bound.kwargs)

    return __call__


CALLBACKS = ("callback_on_step_end", "callback")
STEPPED = {"model_output", "timestep", "sample"}
SCHEDULER = {"set_timesteps": _set_timesteps, "step": _step, "__deepcopy__": _deepcopy}


def shape_of_latents(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    """Returns the shape of the latents of a call, its first floating tensor; of a list, its length and one's shape."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor) and value.is_floating_point() and value.ndim > 1:
            return tuple(value.shape)
        if isinstance(value, (list, tuple)) and value and all(isinstance(one, Tensor) for one in value):
            return (len(value), tuple(value[0].shape))
    return (1,)


def resized(output: Any, given: tuple[Any, ...], samples: int) -> Any:
    """Returns the output of a call with latents of the shape `given`, cut or repeated to another number of samples.

    `LookupError` where the output does not have one entry a sample.
    """
    listed = isinstance(given[-1], tuple)  # one tensor a sample goes in, and one comes out
    order = [k % given[0] for k in range(samples)]

    def cut(value: Any) -> Any:
        if not isinstance(value, (Tensor, list)):
            return value
        if len(value) != given[0]:
            raise LookupError(f"{len(value)} entries for {given[0]} samples")
        return value[order] if isinstance(value, Tensor) else [value[k] for k in order]

    return tree_map(cut, output, is_leaf=lambda value: listed and isinstance(value, list))


def offset_in(grid: Any, timestep: Any) -> int | None:
    """Returns the place of a timestep that is an entry of the grid's own memory; reads nothing from the device."""
    if not (isinstance(grid, Tensor) and isinstance(timestep, Tensor)) or grid.is_meta or timestep.is_meta:
        return None
    same = timestep.untyped_storage().data_ptr() == grid.untyped_storage().data_ptr()
    if not same or timestep.dtype != grid.dtype or not grid.ndim or not grid.stride(0):
        return None
    return (timestep.storage_offset() - grid.storage_offset()) // grid.stride(0)


def number_of(timestep: Any) -> float:
    """Returns a timestep as a number: the first of a batch."""
    return float(timestep.flatten()[0]) if isinstance(timestep, Tensor) else float(timestep)


def time_argument(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    """Returns the time that a denoiser is called with, as a tensor."""
    values = [kwargs[name] for name in kwargs if name in TIMES]
    values += [one for one in args[1:] if isinstance(one, (float, int)) or (isinstance(one, Tensor) and one.ndim <= 1)]
    return next((torch.as_tensor(value) for value in values if value is not None), None)


def first_output(output: Any) -> Tensor | None:
    """Returns a copy of the first tensor that a call returned, as others work in place; a list has one a sample.

    None where it returned none: some calls only fill a cache of keys and values.
    """
    listed = isinstance(value := output[0] if isinstance(output, tuple) else output, list)
    tensors = split_tensors(value)[1]
    if listed and len({t.shape for t in tensors}) == 1:
        return torch.stack(tensors)
    return tensors[0].clone() if tensors else None


def largest(time: Tensor) -> float:
    """Returns the time of a denoiser call: frames that are given may have one of their own, near zero."""
    return float(time.max())


def wants_gradient(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether the first tensor of a call wants a gradient.

    If the run itself keeps none, the call is differentiated on its own, to guide the latents: nothing that
    was returned earlier will do.
    """
    if not torch.is_grad_enabled():
        return False
    first = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
    return first is not None and first.requires_grad
