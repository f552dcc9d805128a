"""Makes diffusion pipelines faster by learned caching: fewer denoiser calls, the same images."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Fit", "Profile", "Schedule", "attach", "calibrate"]

if TYPE_CHECKING:
    from .calibration.calibrate import calibrate
    from .calibration.match import Fit
    from .engines.diffusers.attach import attach
    from .profile import Profile
    from .schedule.schedule import Schedule

HOMES = {
    "Fit": "calibration.match",
    "Profile": "profile",
    "Schedule": "schedule.schedule",
    "attach": "engines.diffusers.attach",
    "calibrate": "calibration.calibrate",
}


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module 'adaptcache' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{HOMES[name]}", __name__), name)
