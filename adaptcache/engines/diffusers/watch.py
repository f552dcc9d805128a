"""A call of a pipeline: what is checked before and after it, and its callbacks, which are not its loop."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback

from ...errors import AttachError

if TYPE_CHECKING:
    from .gate import Gate
import copy
import copyreg
from contextlib import ExitStack

from torch import nn

from ...hooks import Move

CALLBACKS = ("callback_on_step_end", "callback")


@contextmanager
def calling(gate: Gate, arguments: Mapping[str, Any]) -> Iterator[None]:
    """Stands around a call of the pipeline of a gate.

    Raises:
        AttachError: Another thread is calling it, or it was called and nothing could have been skipped.
    """
    if not gate.caller.acquire(blocking=False):
        raise AttachError(
            "this pipeline is used by two threads at once; give each thread a pipeline of its own "
            "(type(pipe)(**pipe.components) with its own scheduler shares the weights) and attach to each"
        )
    before, apart = gate.started, gate.apart
    gate.apart = False  # a callback that calls its own pipeline again
    try:
        if gate.pipe.scheduler is not gate.scheduler:
            raise AttachError(
                f"the scheduler was replaced by a {type(gate.pipe.scheduler).__name__} after attach; "
                "close() the handle and attach again"
            )
        gate.called(arguments)
        yield
        check_used(gate, before)
    finally:
        gate.finish()  # broken off, or stopped before the end of the grid
        gate.apart = apart
        gate.caller.release()


def check_used(gate: Gate, before: int) -> None:
    """Raises where a call went past the gate: a schedule never silently does nothing."""
    name = type(gate.pipe).__name__
    if gate.started == before and not gate.closed:
        raise AttachError(f"{name} did not use its scheduler: nothing could be skipped; close() the handle")
    if gate.run is not None and gate.run.calls and not gate.run.taken[id(gate.scheduler)]:
        raise AttachError(
            f"{name} called its denoiser but not the step() of its scheduler, which was replaced after "
            "attach (by another library?): nothing could be skipped; close() the handle"
        )


def arguments_of(method: Callable[..., Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Returns the arguments of a call by name, or only the named ones where it cannot be made."""
    try:
        return dict(inspect.signature(method).bind(*args, **kwargs).arguments)
    except TypeError:
        return kwargs  # the call itself will say what is wrong with it


def heard_apart(gate: Gate, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the named arguments of a call, its callbacks made to run aside from the loop of the gate.

    A callback that calls the denoiser, or another pipeline that has the same one, would be taken for the
    loop: it would get outputs of earlier steps, and push the steps of the run out of place.
    """
    given = {name: arguments[name] for name in CALLBACKS if arguments.get(name) is not None}
    return {**arguments, **{name: heard(gate, callback) for name, callback in given.items()}}


def heard(gate: Gate, callback: Any) -> Any:
    """Returns a callback that runs aside from the loop."""
    if isinstance(callback, (PipelineCallback, MultiPipelineCallbacks)):
        return Aside(gate, callback)  # pipelines ask these which tensors they want

    def call(*args: Any, **kwargs: Any) -> Any:
        with gate.aside():
            return callback(*args, **kwargs)

    return functools.update_wrapper(call, callback)


class Aside(MultiPipelineCallbacks):  # type: ignore[misc]
    """A callback object of diffusers, run aside from the loop."""

    def __init__(self, gate: Gate, callback: Any) -> None:
        super().__init__([callback])
        self.gate = gate

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self.gate.aside():
            return super().__call__(*args, **kwargs)


# How a pipeline, its scheduler and its denoisers are made to report to a gate, and set back.

DENOISERS = ("transformer", "transformer_2", "unet")  # what diffusers pipelines call theirs
SIDES = ("controlnet",)  # what only serves a denoiser at the same step, and is skipped with it


def denoisers_of(pipe: Any) -> list[nn.Module]:
    """Returns the denoisers of a pipeline: one, or two where experts share the steps (Wan 2.2)."""
    found = named(pipe, DENOISERS)
    scheduler = getattr(pipe, "scheduler", None)
    if not found or scheduler is None:
        raise AttachError(
            f"{type(pipe).__name__} has no scheduler or none of {', '.join(DENOISERS)}: "
            "adaptcache works on pipelines that call a denoiser once or more for each scheduler step"
        )
    takes = inspect.signature(type(scheduler).step).parameters
    if missing := [name for name in ("model_output", "timestep", "sample") if name not in takes]:
        step = f"{type(scheduler).__name__}.step"
        raise AttachError(f"{step} takes no {', '.join(missing)}: adaptcache cannot hand it a forecast")
    return found


def named(pipe: Any, names: tuple[str, ...]) -> list[nn.Module]:
    """Returns the modules a pipeline has under these names."""
    parts = [getattr(pipe, name, None) for name in names]
    return [part for part in parts if isinstance(part, nn.Module)]


def check_plain(scheduler: Any) -> None:
    """Raises where somebody else replaced a method of this very scheduler: then a gate would hear nothing."""
    if replaced := sorted({"step", "set_timesteps"} & vars(scheduler).keys()):
        raise AttachError(
            f"{' and '.join(replaced)} of this {type(scheduler).__name__} was replaced on the object itself "
            "(by another library?), so its steps cannot be watched; take that off before attach"
        )


class Guard:
    """Stands before a module: every call of it goes to the gate that is in a run in this thread.

    Pipelines that share a denoiser share its guard, with a gate each.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.gates: list[Gate] = []
        self.before = vars(module).get("_compiled_call_impl")  # `module.compile()` puts its code here

    @staticmethod
    def of(module: nn.Module) -> Guard | None:
        """Returns the guard that stands before a module."""
        found = vars(module).get("_compiled_call_impl")
        return found if isinstance(found, Guard) else None

    @staticmethod
    def compiled(module: nn.Module) -> bool:
        """Whether the code behind a module, and behind its guard if it has one, is compiled."""
        code = vars(module).get("_compiled_call_impl")
        return hasattr(module, "_orig_mod") or (code.before if isinstance(code, Guard) else code) is not None

    @staticmethod
    def stand(module: nn.Module, gate: Gate, undo: ExitStack) -> None:
        """Sends the calls of a module to a gate, until `undo` is closed."""
        guard = Guard.of(module) or Guard(module)
        guard.gates.append(gate)
        vars(module)["_compiled_call_impl"] = guard
        undo.callback(guard.leave, gate)

    def leave(self, gate: Gate) -> None:
        """Lets go of a gate; the last one sets the module back, unless `module.compile()` came between."""
        self.gates.remove(gate)
        if not self.gates and Guard.of(self.module) is self:
            del vars(self.module)["_compiled_call_impl"]
            if self.before is not None:
                vars(self.module)["_compiled_call_impl"] = self.before

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        original = self.before or self.module._call_impl
        running = [gate for gate in self.gates if gate.running]
        if not running:  # called outside of a pipeline's loop, or by a pipeline that is not attached
            return original(*args, **kwargs)
        return max(running, key=lambda gate: gate.started).call(self.module, original, args, kwargs)


def watched_by(part: Any) -> Gate | None:
    """Returns the gate a scheduler or a pipeline reports to; copies that outlived a gate do not."""
    gate: Gate | None = vars(type(part)).get("_gate")
    return gate if gate is not None and (part is gate.pipe or part is gate.scheduler) else None


def watch_scheduler(scheduler: Any, gate: Gate, undo: ExitStack) -> None:
    """Makes a scheduler, and copies made of it, report to a gate, until `undo` is closed."""
    base = plain(scheduler)
    signature = inspect.signature(base.step)

    @functools.wraps(base.set_timesteps)  # pipelines ask for the names of its arguments
    def set_timesteps(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = base.set_timesteps(self, *args, **kwargs)
        if gate.closed:  # this is a copy that outlived it
            self.__class__ = base
        else:
            gate.start(self)
        return result

    @functools.wraps(base.step)
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        return gate.step(Move(self, base.step, signature.bind(self, *args, **kwargs)))

    def __deepcopy__(self: Any, memo: dict[int, Any]) -> Any:
        # LTX-2 copies its scheduler for the audio: the copy has to be watched too, and is not pickled.
        other: Any = object.__new__(type(self))
        memo[id(self)] = other
        vars(other).update(copy.deepcopy(vars(self), memo))
        return other

    disguise(scheduler, base, gate, undo, set_timesteps=set_timesteps, step=step, __deepcopy__=__deepcopy__)


def watch_pipeline(pipe: Any, gate: Gate, undo: ExitStack) -> None:
    """Makes the calls of a pipeline report to a gate, until `undo` is closed."""
    base = plain(pipe)

    @functools.wraps(base.__call__)
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        with calling(gate, arguments_of(base.__call__, self, *args, **kwargs)):
            return base.__call__(self, *args, **heard_apart(gate, kwargs))

    disguise(pipe, base, gate, undo, __call__=__call__)


def plain(part: Any) -> type[Any]:
    """Returns the true class of a scheduler or a pipeline."""
    return type(part).__base__ if "_gate" in vars(type(part)) else type(part)  # type: ignore[return-value]


def disguise(part: Any, base: type[Any], gate: Gate, undo: ExitStack, **methods: Any) -> None:
    """Gives an object a subclass of its class with other methods, until `undo` is closed."""

    def __reduce_ex__(self: Any, protocol: Any) -> Any:
        return copyreg._reconstructor, (base, object, None), vars(self)  # type: ignore[attr-defined]

    own = {"_gate": gate, "__reduce_ex__": __reduce_ex__, "__module__": base.__module__}
    own |= {"__qualname__": base.__qualname__, "__doc__": base.__doc__}
    part.__class__ = type(base.__name__, (base,), own | methods)
    undo.callback(setattr, part, "__class__", base)
