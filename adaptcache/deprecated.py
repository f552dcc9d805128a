"""Names of the first version that keep working for one more, with a DeprecationWarning."""

import functools
import importlib
import warnings
from collections.abc import Callable
from typing import Any

ARGUMENTS = {
    "steps": "num_inference_steps",
    "call": "pipe_kwargs",
    "held_out": "eval_prompts",
    "teacher_steps": "reference_steps",
    "at_most": "max_failure_rate",
    "store": "cache_dir",
    "knobs": "params",
}
MODULES = {
    "call": "runs", "certify": "evaluation.certify", "generate": "evaluation.generate",
    "matching": "calibration.match", "metrics": "evaluation.metrics", "ranks": "distributed",
}  # fmt: skip


def with_old_names(verb: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a public function that takes its arguments under their old names too, and warns of each."""

    @functools.wraps(verb)
    def call(*args: Any, **kwargs: Any) -> Any:
        return verb(*args, **rename_arguments(kwargs))

    return call


def rename_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    """Returns arguments under their present names; warns of each old one, at the line of the call."""
    found = dict(arguments)
    for old, new in ARGUMENTS.items():
        if old in found:
            if new in found:
                raise TypeError(f"{old} and {new} are one argument: give {new}")
            warnings.warn(f"{old} is called {new} now", DeprecationWarning, stacklevel=3)
            found[new] = found.pop(old)
    return found


def find_module(name: str) -> Any:
    """Returns the module that `adaptcache.<name>` was, or None where there was none."""
    if (now := MODULES.get(name)) is None:
        return None
    message = f"adaptcache.{name} is adaptcache.{now} now"
    warnings.warn(message, DeprecationWarning, stacklevel=3)
    return importlib.import_module(f".{now}", __package__)
