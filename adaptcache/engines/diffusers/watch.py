"""How a pipeline, its schedulers and its denoisers are made to report to a gate, and set back.

Methods are wrapped on the class, for the objects that are watched and for no others: so `type(scheduler) is ...`
stays true, pickles and copies are plain, and copies that a pipeline makes of its scheduler during a call (one for
video, one for audio) can be watched too.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

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


_lock = threading.RLock()  # a gate may be collected, and close, while another one opens
# By the id of an object, which lives as long: the gate that it reports to. Gates are kept by their pipelines.
watched: WeakValueDictionary[int, Gate] = WeakValueDictionary()
_wrapped: dict[tuple[type, str], Wrapped] = {}


def watch(part: Any, gate: Gate, wrappers: Mapping[str, Callable[[Any], Any]], undo: ExitStack) -> None:
    """Makes a pipeline or a scheduler report to a gate, until `undo` is closed.

    What wraps a method is given by its name. `__call__` is wrapped on base classes too, as callbacks may first come in
    there.

    Raises:
        AttachError: It reports to another one.
    """
    name, kinds = type(part).__name__, type(part).__mro__
    with _lock:
        if (other := watched.get(id(part))) is not None:
            says = f"the {name} of this pipeline is attached already; close() that handle first"
            own = f", or give this one its own (pipe.scheduler = {name}.from_config(pipe.scheduler.config))"
            raise AttachError(says if other.pipe is gate.pipe else says + own)
        watched[id(part)] = gate
    undo.callback(watched.pop, id(part), None)
    for method, wrap in wrappers.items():
        for kind in [one for one in kinds if method in vars(one)] if method == "__call__" else kinds[:1]:
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


def check_plain(scheduler: Any) -> None:
    """Raises where a method was replaced on the very object: then its steps cannot be watched."""
    if replaced := sorted({"step", "set_timesteps"} & vars(scheduler).keys()):
        raise AttachError(
            f"{' and '.join(replaced)} of this {type(scheduler).__name__} was replaced on the object itself "
            "(by another library?), so its steps cannot be watched; take that off before attach"
        )
