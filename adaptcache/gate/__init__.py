"""Stands between a pipeline, its denoiser and its scheduler: the only package that touches either."""

from .gate import Gate
from .visit import Update, Visitor

__all__ = ["Gate", "Update", "Visitor"]
