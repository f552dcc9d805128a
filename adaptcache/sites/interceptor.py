"""Takes the calls of one module, and says what is compiled."""

import threading
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any, Protocol

from torch import nn

from ..errors import AttachError

SLOT = "_compiled_call_impl"  # `nn.Module.__call__` asks it first, and `module.compile()` puts its code there

# Called with the module, what makes its call, and the arguments of that.
Call = Callable[[nn.Module, Callable[..., Any], Any, Any], Any]


class Owner(Protocol):
    """Whose runs calls belong to: a gate."""

    started: int  # orders the runs in one thread: a callback may call another pipeline
    thread: int | None  # where a loop of its pipeline is under way; None outside of one, and in callbacks


class ModuleInterceptor:
    """Takes the calls of a module for the owners that are running in this thread.

    It is outside of hooks, offloading and the compiled code of the module: none of them sees it, and a call
    that is not made runs none of them. Pipelines that share a module share its interceptor: of several owners
    the one whose run started last gets the call. What an owner installed several times lies one behind the
    other, the last one in front.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.calls: list[tuple[Owner, Call]] = []
        self.before = vars(module).get(SLOT)

    @staticmethod
    def of(module: nn.Module) -> "ModuleInterceptor | None":
        """Returns the interceptor of a module."""
        found = vars(module).get(SLOT)
        return found if isinstance(found, ModuleInterceptor) else None

    @staticmethod
    def install(module: nn.Module, owner: Owner, call: Call, undo: ExitStack, shared: bool = True) -> None:
        """Sends a module's calls to a function while its owner runs; `AttachError` where another has it for itself."""
        found = ModuleInterceptor.of(module) or ModuleInterceptor(module)
        if not shared and any(other is not owner for other, _ in found.calls):
            name = type(module).__name__
            raise AttachError(f"the {name} of this denoiser is attached already; close() that handle first")
        found.calls.append((owner, call))
        vars(module)[SLOT] = found
        undo.callback(found.remove, owner, call)

    def remove(self, owner: Owner, call: Call) -> None:
        """Removes a call; the last one sets the module back, unless `module.compile()` came between."""
        self.calls.remove((owner, call))
        if not self.calls and ModuleInterceptor.of(self.module) is self:
            del vars(self.module)[SLOT]
            if self.before is not None:
                vars(self.module)[SLOT] = self.before

    def serves(self, owner: Owner) -> bool:
        """Whether an owner has a call here."""
        return any(other is owner for other, _ in self.calls)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        original, here = self.before or self.module._call_impl, threading.get_ident()
        if running := [owner for owner, _ in self.calls if owner.thread == here]:
            latest = running[0] if len(running) == 1 else max(running, key=lambda owner: owner.started)
            for owner, call in self.calls:
                if owner is latest:
                    original = self._in_front(call, original)
        return original(*args, **kwargs)

    def _in_front(self, call: Call, original: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: call(self.module, original, args, kwargs)


def is_compiled(module: nn.Module) -> bool:
    """Whether the code of a module is compiled, and with it all within it."""
    code = vars(module).get(SLOT)
    return hasattr(module, "_orig_mod") or getattr(code, "before", code) is not None


def find_compiled(denoiser: nn.Module, names: Iterable[str]) -> str:
    """Returns the name of a module that is compiled together with one of those named, or nothing."""
    around = {".".join(name.split(".")[:end]) for name in names for end in range(name.count(".") + 1)}
    for name in sorted(around):
        if is_compiled(denoiser.get_submodule(name)):
            return name or type(denoiser).__name__
    return ""
