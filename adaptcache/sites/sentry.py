"""What stands before one block of a denoiser and sends its calls elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from torch import nn

__all__ = ["Sentry"]


class Sentry:
    """Takes the calls of a module, as a `Guard` takes those of a denoiser, but for one site only.

    It stands outside of hooks, offloading and the compiled code of the block.
    """

    def __init__(self, module: nn.Module, call: Callable[..., Any]) -> None:
        self.module, self.call = module, call
        self.before = vars(module).get("_compiled_call_impl")  # `module.compile()` puts its code here

    @staticmethod
    def of(module: nn.Module) -> bool:
        """Whether one stands before a module."""
        return isinstance(vars(module).get("_compiled_call_impl"), Sentry)

    def stand(self, undo: ExitStack) -> None:
        """Takes its place, until `undo` is closed."""
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
