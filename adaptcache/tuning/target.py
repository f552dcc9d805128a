"""What is asked of a tuned schedule: a speed, a budget, calls, seconds, a quality, or the whole front."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from ..calibration.calibrate import calls_for
from ..evaluation.certify import Claim, prompts_needed

__all__ = ["Target", "seconds"]

SPEEDS = (1.4, 1.7, 2, 2.4, 2.8, 3.4, 4, 4.8, 5.6, 7)  # of the points of a whole front


@dataclass(frozen=True)
class Target:
    """One wish, or none: then the whole front is wanted.

    Arguments:
        speed: All calls over calls made.
        budget: Fraction of the calls that are made.
        max_calls: At most so many denoiser calls.
        max_latency: At most so many seconds for one image, decoding included.
        min_psnr: Decibels that prompts should reach, with as few calls as possible.
        at_most: The share of prompts that may stay below `min_psnr`.
        confidence: How sure that has to be.
    """

    speed: float | None = None
    budget: float | None = None
    max_calls: int | None = None
    max_latency: float | None = None
    min_psnr: float | None = None
    at_most: float = 0.05
    confidence: float = 0.95

    def __post_init__(self) -> None:
        given = [name for name in WISHES if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are two targets: give one, or none for the whole front")
        if self.max_calls is not None and self.max_calls < 1:
            raise ValueError(f"max calls must be 1 or more, got {self.max_calls}")
        if self.max_latency is not None and not 0 < self.max_latency < math.inf:
            raise ValueError(f"max latency must be above 0 seconds, got {self.max_latency:g}")
        if self.min_psnr is not None:
            Claim(self.min_psnr, self.at_most, self.confidence)  # raises where it makes no sense

    def check(self, steps: int, report: int) -> None:
        """Raises what would come up after hours of work.

        Arguments:
            steps: Of a run.
            report: How many prompts are kept aside to report on.
        """
        if self.speed is not None or self.budget is not None:
            calls_for(steps, self.budget, self.speed)
        if self.max_calls is not None and self.max_calls > steps:
            raise ValueError(f"max calls must be in [1, {steps}] for {steps} steps, got {self.max_calls}")
        if self.min_psnr is not None:
            needed = prompts_needed(self.at_most, self.confidence)
            if report < needed:
                allows = 1 - (1 - self.confidence) ** (1 / report) if report else 1.0
                less = f", or allow at most {math.ceil(1e4 * allows) / 1e4:g}" if report > 1 else ""
                raise ValueError(
                    f"at most {self.at_most:g} with confidence {self.confidence:g} needs {needed} held-out "
                    f"prompts or more, got {report}: give more{less}"
                )

    def choices(self, steps: int) -> tuple[int, ...]:
        """Returns the numbers of calls that may be tried, rising; for seconds they have to be measured."""
        if self.speed is not None or self.budget is not None:
            return (calls_for(steps, self.budget, self.speed),)
        if self.max_calls is not None:
            return (self.max_calls,)
        if self.min_psnr is not None:
            return tuple(range(1, steps))
        return tuple(sorted({min(steps - 1, max(1, round(steps / speed))) for speed in SPEEDS}))

    @property
    def several(self) -> bool:
        """Whether more than one number of calls is tried."""
        return all(getattr(self, name) is None for name in WISHES if name != "min_psnr")

    @property
    def short(self) -> str:
        """What a file for it is called."""
        for name in WISHES:
            if (value := getattr(self, name)) is not None:
                unit = {"speed": "x", "budget": "-budget", "max_calls": "-calls", "max_latency": "s"}
                return f"{value:.3g}{unit.get(name, 'dB')}"
        return "front"

    @property
    def usual(self) -> int:
        """How many trials are made if nobody says."""
        if self.min_psnr is not None:
            return 80
        return 120 if self.several else 40

    def __str__(self) -> str:
        for name, unit in WISHES.items():
            if (value := getattr(self, name)) is not None:
                return f"{name.replace('_', ' ')} {value:g}{unit}"
        return "the whole front"


WISHES = {"speed": "x", "budget": "", "max_calls": "", "max_latency": " s", "min_psnr": " dB"}


def seconds(text: str) -> float:
    """Reads a duration: "1.8s", "1800ms", "2min", or a number of seconds."""
    found = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*(ms|s|min|h|)\s*", text)
    if not found:
        raise ValueError(f"{text[:40]!r} is no time: write 1.8s, 900ms or 2min")
    return float(found[1]) * {"ms": 1e-3, "s": 1.0, "": 1.0, "min": 60.0, "h": 3600.0}[found[2]]
