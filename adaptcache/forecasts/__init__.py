"""What to use instead: one file a method."""

from .base import Forecast, Weights
from .extrapolate import Extrapolate
from .matched import Matched

__all__ = ["FORECASTS", "Forecast", "Weights"]

FORECASTS: dict[str, type[Forecast]] = {
    "extrapolate": Extrapolate,
    "matched": Matched,
}
