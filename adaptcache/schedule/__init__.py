"""The artifact: a schedule, and its parts."""

from .format import Certificate, Denoiser, Evidence, Grid, Kernel
from .rule import Rule
from .schedule import FORMAT, Schedule

__all__ = ["FORMAT", "Certificate", "Denoiser", "Evidence", "Grid", "Kernel", "Rule", "Schedule"]
