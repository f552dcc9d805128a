"""Pages, charts and pictures of results."""

from .measured import Measured
from .page import build_report, write_report

__all__ = ["Measured", "build_report", "write_report"]
