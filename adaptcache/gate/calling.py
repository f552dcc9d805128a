"""A call of a pipeline: what is checked before and after it, and its callbacks, which are not its loop."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback

from ..errors import AttachError

if TYPE_CHECKING:
    from .gate import Gate

__all__ = ["arguments_of", "calling", "heard_apart"]

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
