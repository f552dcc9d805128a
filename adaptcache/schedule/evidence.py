"""How good a schedule is, as it was measured."""

from __future__ import annotations

from pydantic import FiniteFloat

from ..certify import Certificate
from .fields import Count, Line, Part, Summary

__all__ = ["Evidence"]


class Evidence(Part):
    """What was measured on prompts that were not used for fitting.

    Arguments:
        prompts: The name of the prompt set.
        n: How many of its held-out prompts.
        calls: Steps whose denoiser is called, of all steps.
        psnr: Decibels against the full run with the same noise: mean, and 5th percentile over prompts.
        ssim: The same for structural similarity, where it was measured.
        speed: All steps over computed steps.
        certificate: What was tested of a quality target.
        verdict: Why nothing is skipped, where that is the result.
    """

    prompts: Line
    n: Count
    calls: tuple[Count, Count]
    psnr: Summary
    ssim: Summary | None = None
    speed: FiniteFloat
    certificate: Certificate | None = None
    verdict: Line | None = None
