"""How a pipeline, its scheduler and its denoisers are made to report to a gate, and set back."""

from __future__ import annotations

import copy
import copyreg
import functools
import inspect
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from torch import nn

from ..errors import AttachError
from .calling import arguments_of, calling, heard_apart
from .move import Move

if TYPE_CHECKING:
    from .gate import Gate

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
