"""Makes diffusion pipelines faster by learned caching: fewer denoiser calls, the same images."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"
__all__ = ["Profile", "Schedule", "attach", "calibrate", "compare", "evaluate", "hook", "tune"]

if TYPE_CHECKING:
    from .calibration.calibrate import calibrate
    from .comparison.compare import compare
    from .engines.diffusers.attach import attach
    from .engines.diffusers.model_hook import hook
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
    "compare": "comparison.compare",
    "evaluate": "evaluation.evaluate",
    "hook": "engines.diffusers.model_hook",
    "tune": "tuning.tune",
}
VERBS = ("calibrate", "compare", "evaluate", "tune")


def __getattr__(name: str) -> Any:
    """Imports what is asked for: `import adaptcache` costs no torch, and works without diffusers."""
    from .deprecated import find_module, with_old_names

    if name not in HOMES:
        if name.startswith("__") or (module := find_module(name)) is None:
            raise AttributeError(f"module 'adaptcache' has no attribute {name!r}")
        return module
    try:
        found = getattr(importlib.import_module(f".{HOMES[name]}", __name__), name)
    except ModuleNotFoundError as error:
        if error.name != "diffusers":
            raise
        raise ImportError(f"{name} needs diffusers: pip install diffusers") from error
    globals()[name] = with_old_names(found) if name in VERBS else found
    return globals()[name]
