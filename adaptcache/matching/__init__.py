"""Fits the weights of a forecast while the calibration prompts follow the plan in lockstep."""

from .match import Fit, match

__all__ = ["Fit", "match"]
