"""Fits candidates and judges them: on the true pipeline, by decoded images, in rungs."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median

import numpy as np

from ..calibration.fit import build_schedule, choose_plan
from ..calibration.match import Fit, match
from ..calibration.search import EFFORT
from ..evaluation.generate import generate, reference_images
from ..evaluation.metrics import score_images
from ..evaluation.validate import full_rule
from ..profiling.measure import Measurement
from ..runs import PromptSet, Setup
from ..schedule.rule import Rule
from ..schedule.schedule import Schedule
from .candidate import FEATURES, Candidate

LEAST = 4  # prompts of the first rung: fewer cannot differ significantly


@dataclass(eq=False)
class CandidateEvaluator:
    """Fits candidates on the first `half` of the calibration prompts, and judges them by the others."""

    setup: Setup
    prompts: PromptSet
    half: int
    measurement: Measurement

    def __post_init__(self) -> None:
        self.fit = functools.cache(self.fit)  # type: ignore[method-assign]

    @functools.cached_property
    def truth(self) -> list[np.ndarray]:
        """The images of full runs on the select prompts."""
        own = replace(self.setup, progress=lambda _, done, of: self.setup.progress("select, full", done, of))
        return reference_images(own, self.prompts[self.half :])

    @functools.cached_property
    def full(self) -> Schedule:
        """A schedule that computes every step."""
        times = tuple(map(float, self.measurement.profile.times))
        return build_schedule(self.setup, self.measurement.profile, (full_rule(times),))

    def choose_plan(self, calls: int) -> tuple[int, ...]:
        """Returns the plan that `calibrate` finds."""
        return choose_plan(self.setup, self.prompts, self.measurement, calls, Fit(), EFFORT)[0].plan

    def fit(self, candidate: Candidate, everything: bool = False) -> tuple[Rule, float]:
        """Returns the rule of a candidate, fitted on the first half or everything, and its final error."""
        count = len(self.prompts) if everything else self.half
        measured = self.measurement.head(count, self.setup.batch_size)
        fit = Fit(candidate.history, FEATURES[candidate.features], candidate.ridge)
        found = match(self.setup, self.prompts[:count], candidate.plan, measured, fit)
        return found.rule, found.error

    def score(self, schedule: Schedule, prompts: PromptSet, truth: Sequence[np.ndarray]) -> list[float]:
        """Returns the decibels of prompts by a schedule."""
        images = generate(self.setup, prompts, schedule).images
        return score_images(images, truth, prompts.first, "the run by a schedule")

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
        runs = [generate(self.setup, self.prompts[:1], schedule).total for _ in range(4)]
        return median(runs[1:])
