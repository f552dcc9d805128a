"""When to compute: one file a method."""

from .base import Policy, StaticPolicy
from .codebook import Codebook
from .drift import Drift
from .gears import Gears
from .growing import Growing
from .learned import Learned
from .local_error import LocalError
from .magnitude import Magnitude
from .mask import Mask
from .plan import Plan
from .polynomial import Polynomial
from .probe import Probe
from .sensitivity import Sensitivity
from .spectral import Spectral
from .third_difference import ThirdDifference
from .transform_rate import TransformRate
from .uniform import Uniform
from .verify import Verify

__all__ = ["POLICIES", "Policy", "StaticPolicy"]

POLICIES: dict[str, type[Policy]] = {
    "codebook": Codebook,
    "drift": Drift,
    "gears": Gears,
    "growing": Growing,
    "learned": Learned,
    "local-error": LocalError,
    "magnitude": Magnitude,
    "mask": Mask,
    "plan": Plan,
    "polynomial": Polynomial,
    "probe": Probe,
    "sensitivity": Sensitivity,
    "spectral": Spectral,
    "third-difference": ThirdDifference,
    "transform-rate": TransformRate,
    "uniform": Uniform,
    "verify": Verify,
}
