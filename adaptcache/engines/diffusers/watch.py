"""How a pipeline, its schedulers and its denoisers are made to report to a gate, and set back.

Methods are wrapped on the class, for the objects that are watched and for no others: so `type(scheduler) is ...`
stays true, pickles and copies are plain, and copies that a pipeline makes of its scheduler during a call (one for
video, one for audio) can be watched too.
"""

from __future__ import annotations

import copy
import functools
import inspect
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...errors import AttachError

if TYPE_CHECKING:
    from .gate import Gate


@dataclass
class Wrapped:
    """A method of a class that is wrapped."""

    original: Any  # the method
    own: bool  # whether the class has it itself, and not from a base class
    wrapper: Any  # what was put in its place
    users: int = 1  # how many watched objects need it


_lock = threading.Lock()
_watched: dict[int, tuple[Any, Gate]] = {}  # by the object's id: the object, and whom it reports to
_wrapped: dict[tuple[type, str], Wrapped] = {}
callers = threading.local()  # `gates`: whose calls are under way in this thread, the latest last


def gate_of(part: Any) -> Gate | None:
    """Returns the gate that an object reports to."""
    found = _watched.get(id(part))
    return found[1] if found else None


def caller_here() -> Gate | None:
    """Returns the gate whose loop is under way in this thread, the latest one of several."""
    running = [gate for gate in getattr(callers, "gates", ()) if gate.running and not gate.stepping]
    return running[-1] if running else None


def watch(part: Any, gate: Gate, undo: ExitStack) -> None:
    """Makes a pipeline or a scheduler report to a gate, until `undo` is closed.

    Raises:
        AttachError: It reports to another one.
    """
    name = type(part).__name__
    with _lock:
        if gate_of(part) is not None:
            raise AttachError(f"the {name} of this pipeline is attached already; close() that handle first")
        _watched[id(part)] = (part, gate)
    undo.callback(_watched.pop, id(part), None)
    if hasattr(type(part), "set_timesteps"):
        methods = [(type(part), method, wrap) for method, wrap in SCHEDULER.items()]
    else:  # callbacks may first come in at a base class's call
        kinds = [kind for kind in type(part).__mro__ if "__call__" in vars(kind)]
        methods = [(kind, "__call__", _call) for kind in kinds]
    for kind, method, wrap in methods:
        _wrap(kind, method, wrap)
        undo.callback(_unwrap, kind, method)


def _wrap(kind: type, name: str, wrap: Callable[[Any], Any]) -> None:
    with _lock:
        if (known := _wrapped.get((kind, name))) is not None:
            known.users += 1
            return
        original = getattr(kind, name, None)
        made = _wrapped[kind, name] = Wrapped(original, name in vars(kind), wrap(original))
        setattr(kind, name, made.wrapper)


def _unwrap(kind: type, name: str) -> None:
    with _lock:
        known = _wrapped[kind, name]
        known.users -= 1
        if known.users:
            return
        del _wrapped[kind, name]
        if vars(kind).get(name) is not known.wrapper:
            return  # another library wrapped it since: what lies below passes every call on
        if known.own:
            setattr(kind, name, known.original)
        else:
            delattr(kind, name)


def _set_timesteps(original: Any) -> Any:
    @functools.wraps(original)  # pipelines ask for the names of its arguments
    def set_timesteps(self: Any, *args: Any, **kwargs: Any) -> Any:
        gate, result = gate_of(self), original(self, *args, **kwargs)
        if gate is not None and gate.running:
            gate.timesteps_set(self)
        return result

    return set_timesteps


def _step(original: Any) -> Any:
    signature = inspect.signature(original)

    @functools.wraps(original)
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        gate = gate_of(self)
        if gate is None and (caller := caller_here()) is not None:
            caller.stranger_called(self)
        if gate is None or not gate.running or gate.stepping:  # a subclass calls the step of its base
            return original(self, *args, **kwargs)
        return gate.scheduler_called(self, original, signature.bind(self, *args, **kwargs))

    return step


def _deepcopy(original: Any) -> Any:
    def __deepcopy__(self: Any, memo: dict[int, Any]) -> Any:
        if original is not None:
            other = original(self, memo)
        else:
            other = copy._reconstruct(self, memo, *self.__reduce_ex__(4))  # type: ignore[attr-defined]
        gate = gate_of(self)
        if gate is not None and gate.running and not gate.stepping:
            gate.adopt(other)  # for the pipeline's other latents, or for one of its frames
        return other

    return __deepcopy__


def _call(original: Any) -> Any:
    signature = inspect.signature(original)

    @functools.wraps(original)
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        gate = gate_of(self)
        if gate is None or gate.paused:
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
SCHEDULER = {"set_timesteps": _set_timesteps, "step": _step, "__deepcopy__": _deepcopy}


def named_arguments(bound: inspect.BoundArguments) -> dict[str, Any]:
    """Returns the arguments of a call by name: those in `**kwargs`, and those in `*args` as base classes name them."""
    found: dict[str, Any] = {}
    for name, value in list(bound.arguments.items())[1:]:
        kind = bound.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            found |= value
        elif kind is inspect.Parameter.VAR_POSITIONAL:
            found |= zip(positional_names(type(bound.args[0])), value, strict=False)
        else:
            found[name] = value
    return found


def positional_names(kind: type) -> list[str]:
    """Returns the names of what a call with `*args` hands on to the first base class that has names for it."""
    for base in kind.__mro__:
        known = inspect.signature(vars(base)["__call__"]).parameters.values() if "__call__" in vars(base) else ()
        if known and not any(one.kind is one.VAR_POSITIONAL for one in known):
            return [one.name for one in known][1:]
    return []


def check_plain(scheduler: Any) -> None:
    """Raises where a method was replaced on the very object: then its steps cannot be watched."""
    if replaced := sorted({"step", "set_timesteps"} & vars(scheduler).keys()):
        raise AttachError(
            f"{' and '.join(replaced)} of this {type(scheduler).__name__} was replaced on the object itself "
            "(by another library?), so its steps cannot be watched; take that off before attach"
        )
