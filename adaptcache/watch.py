"""How a scheduler and a denoiser are made to report to a gate, and set back."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .errors import AttachError

if TYPE_CHECKING:
    from .gate import Gate

DENOISERS = ("transformer", "transformer_2", "unet")  # what diffusers pipelines call theirs


def denoisers_of(pipe: Any) -> list[nn.Module]:
    """Returns the denoisers of a pipeline: one, or two where experts share the steps (Wan 2.2)."""
    parts = [getattr(pipe, name, None) for name in DENOISERS]
    found = [part for part in parts if isinstance(part, nn.Module)]
    if not found or getattr(pipe, "scheduler", None) is None:
        raise AttachError(
            f"{type(pipe).__name__} has no scheduler or none of {', '.join(DENOISERS)}: "
            "adaptcache works on pipelines that call a denoiser once or more for each scheduler step"
        )
    return found


class Guard:
    """Stands before a denoiser: every call of it goes to the gate first."""

    def __init__(self, denoiser: nn.Module, call: Callable[..., Any]) -> None:
        self.denoiser, self.call = denoiser, call
        self.before = vars(denoiser).get("_compiled_call_impl")  # `module.compile()` puts its code here

    @staticmethod
    def of(denoiser: Any) -> bool:
        """Whether a guard stands before this denoiser."""
        return isinstance(vars(denoiser).get("_compiled_call_impl"), Guard)

    @staticmethod
    def compiled(denoiser: Any) -> bool:
        """Whether the code behind this denoiser, and behind its guard if it has one, is compiled."""
        code = vars(denoiser).get("_compiled_call_impl")
        return (
            hasattr(denoiser, "_orig_mod") or (code.before if isinstance(code, Guard) else code) is not None
        )

    def stand(self, undo: ExitStack) -> None:
        """Takes its place, until `undo` is closed."""
        vars(self.denoiser)["_compiled_call_impl"] = self
        undo.callback(self.leave)

    def leave(self) -> None:
        """Leaves, unless `module.compile()` has replaced it in the meantime."""
        if vars(self.denoiser).get("_compiled_call_impl") is self:
            del vars(self.denoiser)["_compiled_call_impl"]
            if self.before is not None:
                vars(self.denoiser)["_compiled_call_impl"] = self.before

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.call(self.denoiser, self.before or self.denoiser._call_impl, args, kwargs)


class Move:
    """One call of `scheduler.step`, that can be made for real or tried on a copy."""

    def __init__(self, scheduler: Any, method: Callable[..., Any], bound: inspect.BoundArguments) -> None:
        self.scheduler, self.method, self.bound = scheduler, method, bound
        self.x: Tensor = bound.arguments["sample"]
        self.u: Tensor = bound.arguments["model_output"]

    def make(self, u: Tensor) -> Any:
        """Steps the scheduler with the model output `u` and returns what it returns."""
        self.bound.arguments["model_output"] = u
        return self.method(*self.bound.args, **self.bound.kwargs)

    def dry(self, u: Tensor) -> Tensor:
        """Returns where a copy of the scheduler lands with `u`. Draws the noise the real step will draw."""
        arguments = dict(self.bound.arguments)
        arguments |= {"self": copy.deepcopy(self.scheduler), "model_output": u}
        if (generator := arguments.get("generator")) is not None:
            many = isinstance(generator, list)
            arguments["generator"] = [g.clone_state() for g in generator] if many else generator.clone_state()
        bound = inspect.BoundArguments(self.bound.signature, arguments)
        with torch.random.fork_rng(devices=[u.device] if u.device.type == "cuda" else []):
            return landing(self.method(*bound.args, **bound.kwargs))


def landing(result: Any) -> Tensor:
    """Returns the latents in what `scheduler.step` returned."""
    y: Tensor = result[0] if isinstance(result, tuple) else result.prev_sample
    return y


class Watch:
    """Makes a scheduler, and the copies made of it, report to a gate, by a subclass of its class."""

    @staticmethod
    def of(scheduler: Any) -> bool:
        """Whether this scheduler reports to a gate."""
        return "_gate" in vars(type(scheduler))

    @staticmethod
    def stand(scheduler: Any, gate: Gate, undo: ExitStack) -> None:
        """Starts the reports, until `undo` is closed."""
        base = type(scheduler)
        signature = inspect.signature(base.step)

        @functools.wraps(base.set_timesteps)
        def set_timesteps(self: Any, *args: Any, **kwargs: Any) -> Any:
            result = base.set_timesteps(self, *args, **kwargs)
            gate.start(self)
            return result

        @functools.wraps(base.step)
        def step(self: Any, *args: Any, **kwargs: Any) -> Any:
            return gate.step(Move(self, base.step, signature.bind(self, *args, **kwargs)))

        names = {"__module__": base.__module__, "__qualname__": base.__qualname__, "__doc__": base.__doc__}
        own = {"_gate": gate, "set_timesteps": set_timesteps, "step": step}
        scheduler.__class__ = type(base.__name__, (base,), names | own)
        undo.callback(setattr, scheduler, "__class__", base)


def shapes_of(*values: Any) -> tuple[Any, ...]:
    """Returns the shapes of all tensors in (nested) arguments, to tell calls of one kind from another."""
    found: list[Any] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(tuple(value.shape))
        elif isinstance(value, Mapping):
            found.append(shapes_of(*value.values()))
        elif isinstance(value, (list, tuple)):
            found.append(shapes_of(*value))
    return tuple(found)
