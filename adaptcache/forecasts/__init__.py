"""What to use instead: one file a method."""

from .adams_bashforth import AdamsBashforth
from .affine import Affine
from .bands import Bands
from .base import Forecast, Known, Weights
from .channels import Channels
from .chebyshev import Chebyshev
from .dmd import DynamicModes
from .extrapolate import Extrapolate
from .foca import FoCa
from .frequency import Frequency
from .gamma import Gamma
from .hermite import Hermite
from .increment import Increment
from .matched import Matched
from .momentum import Momentum
from .newton import Newton
from .offset import Offset
from .open_loop import OpenLoop
from .scaled import Scaled
from .taylor import Taylor
from .velocity import Velocity

__all__ = ["FORECASTS", "Forecast", "Known", "Weights"]

FORECASTS: dict[str, type[Forecast]] = {
    kind.model_fields["type"].default: kind
    for kind in (
        AdamsBashforth, Affine, Bands, Channels, Chebyshev, DynamicModes, Extrapolate, FoCa, Frequency, Gamma, Hermite,
        Increment, Matched, Momentum, Newton, Offset, OpenLoop, Scaled, Taylor, Velocity,
    )
}  # fmt: skip
