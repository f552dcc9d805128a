"""Runs a pipeline by a schedule."""

from ..engines.diffusers.attach import Handle, attach
from .report import Report
from .runner import Runner, runner_for

__all__ = ["Handle", "Report", "Runner", "attach", "runner_for"]
