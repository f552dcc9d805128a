"""Makes diffusion pipelines faster by learned caching: fewer denoiser calls, the same images."""

__version__ = "0.1.0"

from .calibrate import calibrate
from .matching import Fit
from .profiling.profile import Profile
from .runtime import attach
from .schedule import Schedule

__all__ = ["Fit", "Profile", "Schedule", "attach", "calibrate"]
