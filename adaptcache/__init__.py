"""Makes diffusion pipelines faster by learned caching: fewer denoiser calls, the same images."""

from __future__ import annotations

import functools
import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"
__all__ = ["Profile", "Schedule", "attach", "calibrate", "compare", "evaluate", "tune"]

if TYPE_CHECKING:
    from .calibration.calibrate import calibrate
    from .comparison import compare
    from .engines.diffusers.attach import attach
    from .evaluation.evaluate import evaluate
    from .profile import Profile
    from .schedule.schedule import Schedule
    from .tuning.tune import tune

HOMES = {
    "Fit": "calibration.match",
    "Profile": "profile",
    "Schedule": "schedule.schedule",
    "attach": "engines.diffusers.attach",
    "calibrate": "calibration.calibrate",
    "compare": "comparison",
    "evaluate": "evaluation.evaluate",
    "tune": "tuning.tune",
}
VERBS = ("calibrate", "compare", "evaluate", "tune")


def __getattr__(name: str) -> Any:
    """Imports what is asked for: `import adaptcache` costs no torch, and works without diffusers."""
    if name not in HOMES:
        raise AttributeError(f"module 'adaptcache' has no attribute {name!r}")
    found = getattr(importlib.import_module(f".{HOMES[name]}", __name__), name)
    if name in VERBS:
        found = _with_old_names(found)
    globals()[name] = found
    return found


def _with_old_names(verb: Any) -> Any:
    from .deprecated import rename_arguments

    @functools.wraps(verb)
    def call(*args: Any, **kwargs: Any) -> Any:
        return verb(*args, **rename_arguments(kwargs))

    return call
