"""Names of the first version that keep working for one more, with a DeprecationWarning."""

from __future__ import annotations

import warnings
from typing import Any

__all__ = ["rename_arguments"]

RENAMED = {
    "steps": "num_inference_steps",
    "call": "pipe_kwargs",
    "held_out": "eval_prompts",
    "teacher_steps": "reference_steps",
    "at_most": "max_failure_rate",
    "store": "cache",
}


def rename_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    """Returns arguments under their present names; warns of each old one."""
    found = dict(arguments)
    for old, new in RENAMED.items():
        if old in found:
            if new in found:
                raise TypeError(f"{old} and {new} are one argument: give {new}")
            warnings.warn(f"{old} is called {new} now", DeprecationWarning, stacklevel=4)
            found[new] = found.pop(old)
    return found
