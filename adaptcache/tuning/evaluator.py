"""Candidates, and who fits and judges them: on the true pipeline, by decoded images, in rungs."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import median
from typing import Any, Self

import numpy as np

from ..calibration.fit import build_schedule, choose_plan
from ..calibration.match import Fit, match
from ..calibration.search import EFFORT
from ..evaluation.generate import generate, reference_images
from ..evaluation.metrics import score_images
from ..evaluation.validate import full_rule
from ..forecasts.matched import Feature
from ..profiling.measure import Measurement
from ..runs import PromptSet, Setup
from ..schedule import Rule, Schedule

LEAST = 4  # prompts of the first rung: fewer cannot differ significantly
FEATURES: dict[str, tuple[Feature, ...]] = {
    "past_x+x+x0": ("past_x", "past_c", "x", "x0"),  # what a pipeline does not have is left out
    "past_x+x": ("past_x", "x"), "x": ("x",), "x0": ("x0",), "none": (),
}  # fmt: skip
MOVES = {"shift": 0.55, "shift two": 0.15, "swap": 0.1, "history": 0.05, "features": 0.04, "ridge": 0.11}
SPACE: dict[str, list[Any]] = {
    "origin": ["calibrate", *MOVES],
    "history": [1, 2, 3, 4, 5, 6], "features": list(FEATURES),
    "ridge": [1e-9, 1e-8, 1e-7, 1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 1e-2, 1e-1],
}  # fmt: skip


@dataclass(frozen=True)
class Candidate:
    """A plan (the computed steps, rising from 0), what its forecast may use, and how it was found."""

    plan: tuple[int, ...]
    history: int = 4
    features: str = "past_x+x+x0"
    ridge: float = 1e-5
    origin: str = field(default="calibrate", compare=False)

    @classmethod
    def suggest(cls, trial: Any, steps: int) -> Self:
        """Returns the candidate of a trial of optuna, or of a finished one."""
        calls = trial.suggest_int("calls", 1, steps)
        plan = {0, *(trial.suggest_int(f"call {k}", 1, steps - 1) for k in range(1, calls))}
        rest = {name: trial.suggest_categorical(name, values) for name, values in SPACE.items()}
        return cls(tuple(sorted(plan)), **rest)

    @property
    def params(self) -> dict[str, Any]:
        """The parameters that `suggest` asks for."""
        calls = {f"call {k}": step for k, step in enumerate(self.plan)}
        return {**asdict(self), **calls, "calls": len(self.plan)}


def leaders(trials: Sequence[Any], calls: int) -> list[Any]:
    """Returns the completed trials with so many calls, the best first."""
    known = [one for one in trials if one.state.name == "COMPLETE" and one.params["calls"] == calls]
    return sorted(known, key=lambda trial: (-trial.value, trial.number))


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
        return choose_plan(self.measurement, calls, Fit(), EFFORT)[0].plan

    def fit(self, candidate: Candidate, everything: bool = False) -> tuple[Rule, float]:
        """Returns the rule of a candidate, fitted on the first half or everything, and its final error."""
        count = len(self.prompts) if everything else self.half
        fit = Fit(candidate.history, FEATURES[candidate.features], candidate.ridge)
        found = match(self.measurement.head(count), candidate.plan, fit)
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
