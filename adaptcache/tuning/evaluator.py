"""Fits candidates and judges them: on the true pipeline, by decoded images, in rungs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from statistics import NormalDist, median

import numpy as np

from ..calibration.fit import build_schedule
from ..calibration.match import Fit, match
from ..evaluation.generate import check_images, generate, reference_images
from ..evaluation.metrics import psnr
from ..forecasts.extrapolate import Extrapolate
from ..policies.learn import watched
from ..policies.plan import Plan
from ..profiling.measure import Measurement
from ..runs import PromptSet, Setup
from ..schedule.rule import Rule
from ..schedule.schedule import Schedule
from .candidate import FEATURES, Candidate
from .target import Target

LEAST = 4  # prompts of the first rung: fewer cannot differ significantly
TIMED = 3  # runs whose median is a latency


@dataclass(frozen=True)
class CandidateEvaluator:
    """Fits candidates on the first half of the calibration prompts, and judges them by the second.

    Arguments:
        setup: Who runs, and how.
        prompts: The calibration prompts.
        measurement: What full runs on all of them gave.
    """

    setup: Setup
    prompts: PromptSet
    measurement: Measurement
    _fitted: dict[tuple[Candidate, bool], tuple[Rule, float]] = field(default_factory=dict, repr=False)

    @property
    def half(self) -> int:
        """How many prompts are fitted on; the others select."""
        return (len(self.prompts) + 1) // 2

    @cached_property
    def truth(self) -> list[np.ndarray]:
        """The images of full runs on the select prompts."""
        own = replace(self.setup, progress=lambda _, done, of: self.setup.progress("select, full", done, of))
        return reference_images(own, self.prompts[self.half :])

    @cached_property
    def full(self) -> Schedule:
        """A schedule that computes every step."""
        times = tuple(map(float, self.measurement.profile.times))
        rule = Rule(policy=Plan.of(range(len(times)), times), forecast=Extrapolate(order=0))
        return build_schedule(self.setup, self.measurement.profile, (rule,))

    def fit(self, candidate: Candidate, everything: bool = False) -> tuple[Rule, float]:
        """Returns the rule of a candidate, and the relative squared error of its final latents.

        It is fitted on the first half of the prompts; with `everything` on all, as `calibrate` does.
        """
        if (candidate, everything) not in self._fitted:
            count = len(self.prompts) if everything else self.half
            measured = self.measurement.head(count, self.setup.batch_size)
            fit = Fit(candidate.history, FEATURES[candidate.features], candidate.ridge)
            found = match(self.setup, self.prompts[:count], candidate.plan, measured, fit)
            policy = watched(Plan.of(candidate.plan, self.full.grid.times), found.seen)
            self._fitted[candidate, everything] = Rule(policy=policy, forecast=found.forecast), found.error
        return self._fitted[candidate, everything]

    def score(self, schedule: Schedule, prompts: PromptSet, truth: Sequence[np.ndarray]) -> list[float]:
        """Returns the decibels of prompts by a schedule."""
        images = generate(self.setup, prompts, schedule).images
        check_images(images, prompts.first, "the run by a schedule")
        return [psnr(image, full) for image, full in zip(images, truth, strict=True)]

    def judge(self, rule: Rule) -> Iterator[list[float]]:
        """Yields the decibels of the select prompts, rung by rung: after 4 prompts, 8, 16, ..., and all."""
        prompts, start, rung = self.prompts[self.half :], 0, LEAST
        schedule = self.full.model_copy(update={"rules": (rule,)})
        while start < len(prompts):
            yield self.score(schedule, prompts[start:rung], self.truth[start:rung])
            start, rung = rung, 2 * rung

    def latency(self, rule: Rule) -> float:
        """Returns the seconds of one image, decoding included: the median of a few runs after a first one."""
        schedule = self.full.model_copy(update={"rules": (rule,)})
        runs = [generate(self.setup, self.prompts[:1], schedule).total for _ in range(1 + TIMED)]
        return median(runs[1:])


def worth(values: Sequence[float], target: Target) -> float:
    """Returns decibels, more is better: the mean; for a quality what few prompts fall below.

    That is taken from a normal distribution: the 5th percentile of a handful of prompts is the worst of them.
    """
    mean = float(np.mean(values))
    if target.min_psnr is None:
        return mean
    return mean - NormalDist().inv_cdf(1 - target.max_failure_rate) * float(np.std(values))
