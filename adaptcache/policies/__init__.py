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
    kind.model_fields["type"].default: kind
    for kind in (
        Codebook, Drift, Gears, Growing, Learned, LocalError, Magnitude, Mask, Plan, Polynomial, Probe,
        Sensitivity, Spectral, ThirdDifference, TransformRate, Uniform, Verify,
    )
}  # fmt: skip
