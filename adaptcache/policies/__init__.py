"""When to compute: one file a method."""

from .base import Policy, StaticPolicy
from .blockwise import Blockwise
from .codebook import Codebook
from .drift import Drift
from .foresight import Foresight
from .gate import Gate
from .gears import Gears
from .growing import Growing
from .learned import Learned
from .local_error import LocalError
from .magnitude import Magnitude
from .mask import Mask
from .plan import Plan
from .polynomial import Polynomial
from .probe import Probe
from .rank import Rank
from .sensitivity import Sensitivity
from .spectral import Spectral
from .table import Table
from .third_difference import ThirdDifference
from .transform_rate import TransformRate
from .uniform import Uniform
from .verify import Verify

__all__ = ["POLICIES", "Policy", "StaticPolicy"]

POLICIES: dict[str, type[Policy]] = {
    kind.model_fields["type"].default: kind
    for kind in (
        Blockwise, Codebook, Drift, Foresight, Gate, Gears, Growing, Learned, LocalError, Magnitude, Mask, Plan,
        Polynomial, Probe, Rank, Sensitivity, Spectral, Table, ThirdDifference, TransformRate, Uniform, Verify,
    )
}  # fmt: skip
