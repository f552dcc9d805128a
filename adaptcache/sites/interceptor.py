"""What stands before one module of a denoiser and sends its calls elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from torch import nn

from ..engines.diffusers.watch import Guard
from ..errors import AttachError

__all__ = ["Sentry"]


class Sentry:
    """Takes the calls of a module, as a `Guard` takes those of a denoiser, but for one site only.

    It stands outside of hooks, offloading and the compiled code of the module. Sites of one gate may stand
    before one module, one behind the other.

    Arguments:
        module: What is stood before.
        call: What is called instead, with the module, what calls it, and its arguments.
        owner: Whose site it is.
    """

    def __init__(self, module: nn.Module, call: Callable[..., Any], owner: object) -> None:
        self.module, self.call, self.owner = module, call, owner
        self.before = vars(module).get("_compiled_call_impl")  # `module.compile()` puts its code here

    @staticmethod
    def of(module: nn.Module) -> Sentry | None:
        """Returns the one that stands before a module."""
        found = vars(module).get("_compiled_call_impl")
        return found if isinstance(found, Sentry) else None

    @staticmethod
    def compiled(module: nn.Module) -> bool:
        """Whether a module's code is compiled, and with it all within it."""
        code = vars(module).get("_compiled_call_impl")
        while isinstance(code, (Sentry, Guard)):
            code = code.before
        return code is not None or hasattr(module, "_orig_mod")

    def stand(self, undo: ExitStack) -> None:
        """Takes its place, until `undo` is closed."""
        if (other := Sentry.of(self.module)) and other.owner is not self.owner:
            name = type(self.module).__name__
            raise AttachError(f"the {name} of this denoiser is attached already; close() that handle first")
        vars(self.module)["_compiled_call_impl"] = self
        undo.callback(self.leave)

    def leave(self) -> None:
        """Leaves, unless `module.compile()` has replaced it in the meantime."""
        if vars(self.module).get("_compiled_call_impl") is self:
            del vars(self.module)["_compiled_call_impl"]
            if self.before is not None:
                vars(self.module)["_compiled_call_impl"] = self.before

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.call(self.module, self.before or self.module._call_impl, args, kwargs)
