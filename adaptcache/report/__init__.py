"""Pages, charts and pictures of results."""

from .page import Measured, build_report, write_report

__all__ = ["Measured", "build_report", "write_report"]
