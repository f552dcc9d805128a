"""What a comparison says of a method: what it reached at a budget, and what it cost before its first use."""

from __future__ import annotations

from dataclasses import dataclass, field

from .baselines.base import Knobs

__all__ = ["Cost", "Line"]


@dataclass(frozen=True)
class Line:
    """What a method reached at a budget; with a `note` instead of numbers where it did not run.

    Arguments:
        method: Its name.
        budget: The fraction of the denoiser calls that it was allowed.
        calls: Denoiser calls it made in a run: its block calls over the blocks.
        blocks: Block calls it made in a run; a block of which a part was skipped counts in part.
        psnr: Decibels of decoded images against the full run, mean and 5th percentile over prompts.
        ssim: The same for structural similarity; None without the extra `metrics`.
        latent: Distance of the final latents from the full run's, relative to their length.
        exact: Decibels of decoded images against a run of many steps.
        shown: How well images show what their captions say: a share of them, or a CLIPScore.
        speed: How many times faster than the full run, in the denoising loop.
        memory: Bytes kept from step to step, at the most, more than the full run keeps; for one prompt.
        each: Decibels against the full run, by prompt.
        knobs: The setting that was best on the calibration prompts.
        tried: How many settings were tried.
        note: Why there are no numbers.
    """

    method: str
    budget: float
    calls: float | None = None
    blocks: float | None = None
    psnr: dict[str, float] | None = None
    ssim: dict[str, float] | None = None
    latent: float | None = None
    exact: dict[str, float] | None = None
    shown: float | None = None
    speed: float | None = None
    memory: int | None = None
    each: list[float] = field(default_factory=list)
    knobs: Knobs = field(default_factory=dict)
    tried: int = 0
    note: str = ""


@dataclass(frozen=True)
class Cost:
    """What a method cost before its first use, for all budgets together, in denoiser calls.

    Arguments:
        method: Its name.
        calibration: Calls for what it is fitted on, by stage; one call serves one prompt.
        settings: Calls for choosing its setting.
        tried: How many settings were tried.
    """

    method: str
    calibration: dict[str, float]
    settings: float = 0.0
    tried: int = 0
