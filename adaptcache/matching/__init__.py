"""Fits the weights of a forecast while the calibration prompts follow the plan in lockstep."""

from .follower import Fit
from .match import match

__all__ = ["Fit", "match"]
