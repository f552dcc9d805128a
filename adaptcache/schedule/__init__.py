"""The artifact: a schedule, and its parts."""

from .format import Certificate, Denoiser, Evidence, Grid, Kernel
from .rule import Rule
from .schedule import FORMATS, Schedule

__all__ = ["FORMATS", "Certificate", "Denoiser", "Evidence", "Grid", "Kernel", "Rule", "Schedule"]
