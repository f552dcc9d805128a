"""Presets and prompt files: how known checkpoints are loaded and called, and what to calibrate on."""

from .preset import CheckpointError, Preset, names, resolve
from .prompts import Prompts, calibration_folder, read_prompts

__all__ = ["CheckpointError", "Preset", "Prompts", "calibration_folder", "names", "read_prompts", "resolve"]
