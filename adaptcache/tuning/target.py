"""What is asked of a tuned schedule: a speed, a budget, calls, seconds, a quality, or the whole front."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist, fmean, pstdev

from ..calibration.calibrate import calls_for
from ..evaluation.certify import QualityTarget, refuse_unaimed
from ..evaluation.metrics import CEILING
from ..limits import check_name
from ..runs import check_numbers

SPEEDS = (1.4, 1.7, 2, 2.4, 2.8, 3.4, 4, 4.8, 5.6, 7)  # of the points of a whole front
UNITS = {"speed": "x", "budget": "", "max_calls": "", "max_latency": " s", "min_psnr": " dB"}


@dataclass(frozen=True)
class Target:
    """One target; with none the whole front is wanted."""

    speed: float | None = None  # all calls over calls made
    budget: float | None = None  # fraction of the calls that are made
    max_calls: int | None = None  # denoiser calls at most
    max_latency: float | None = None  # seconds for one image at most, decoding included
    min_psnr: float | None = None  # decibels that prompts should reach, with as few calls as possible
    max_failure_rate: float = 0.05  # the share of prompts that may stay below `min_psnr`
    confidence: float = 0.95  # how sure that has to be

    def __post_init__(self) -> None:
        check_numbers(self, *UNITS, "max_failure_rate", "confidence")
        if " and " in self.given:
            raise ValueError(f"{self.given} are two targets: give one, or none for the whole front")
        if self.max_latency is not None and not 0 < self.max_latency < math.inf:
            raise ValueError(f"max_latency must be above 0 seconds, got {self.max_latency:g}")
        if self.min_psnr is None:
            refuse_unaimed(self.max_failure_rate, self.confidence)
        if self.quality and self.quality.target > CEILING:
            raise ValueError(f"nothing reaches {self.min_psnr:g} dB: equal images count as {CEILING:g}")

    @property
    def given(self) -> str:
        """The name of the target; empty for the whole front."""
        return " and ".join(name for name in UNITS if getattr(self, name) is not None)

    @property
    def quality(self) -> QualityTarget | None:
        """What has to be certified, if a quality is asked for."""
        if self.min_psnr is None:
            return None
        return QualityTarget(self.min_psnr, self.max_failure_rate, self.confidence)

    def choices(self, steps: int) -> tuple[int, ...]:
        """Returns the numbers of calls that may be tried, rising; for a latency they have to be measured."""
        if self.speed is not None or self.budget is not None:
            return (calls_for(steps, self.budget, self.speed),)
        if self.max_calls is not None:
            if not 1 <= self.max_calls <= steps:
                raise ValueError(f"max_calls must be in [1, {steps}] for {steps} steps, got {self.max_calls}")
            return (self.max_calls,)
        if self.quality:
            return tuple(range(1, steps))
        return tuple(sorted({min(steps - 1, max(1, round(steps / speed))) for speed in SPEEDS}))

    def worth(self, values: Sequence[float]) -> float:
        """Returns what decibels are worth: their mean; for a quality their tail, if they were normal."""
        if not self.quality:
            return fmean(values)
        return fmean(values) - NormalDist().inv_cdf(1 - self.max_failure_rate) * pstdev(values)

    def __str__(self) -> str:
        name = self.given
        return f"{name.replace('_', ' ')} {getattr(self, name):g}{UNITS[name]}" if name else "the whole front"


@dataclass(frozen=True)
class SearchOptions:
    """How long a search goes on, and where its trials are kept."""

    trials: int | None = None  # how many trials there are in all, those of before included
    timeout: float | None = None  # seconds after which no trial is begun
    # URL of a database, or path of a journal file; by default SQLite in the cache, or memory
    storage: str | Path | None = None
    resume: bool = False  # continue the trials that are there
    # the subject of each held-out prompt: variants of one subject count once in a certificate
    groups: Sequence[Hashable] = ()
    name: str | None = None  # what the schedule is called

    def __post_init__(self) -> None:
        check_numbers(self, "trials", "timeout")
        for name in ("trials", "timeout"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, got {value:g}")
        object.__setattr__(self, "groups", tuple(self.groups))
        check_name(self.name or "tuned")
