"""Makes diffusion pipelines faster by learned caching: fewer denoiser calls, the same images."""

__version__ = "0.1.0"

from .calibration.calibrate import calibrate
from .calibration.match import Fit
from .engines.diffusers.attach import attach
from .profile import Profile
from .schedule.schedule import Schedule

__all__ = ["Fit", "Profile", "Schedule", "attach", "calibrate"]
