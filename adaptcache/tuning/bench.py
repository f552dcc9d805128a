"""Fits candidates and judges them: on the true pipeline, by decoded images, in rungs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..calibration.fit import assembled
from ..calibration.match import match
from ..evaluation.generate import generate
from ..evaluation.metrics import psnr
from ..evaluation.validate import check_images
from ..forecasts import FORECASTS
from ..forecasts.extrapolate import Extrapolate
from ..policies.plan import Plan
from ..profiling.cache import Store, content_key
from ..profiling.measure import Measurement, Progress
from ..runs import Call, Prompt
from ..schedule.rule import Rule
from ..schedule.schedule import Schedule
from .candidate import Candidate
from .sets import Sets, head

__all__ = ["Bench", "full_images"]

LEAST = 4  # prompts of the first rung: fewer cannot differ significantly


def rungs(prompts: int) -> list[int]:
    """Returns after how many prompts a trial may be given up: 4, 8, 16, ..., and all."""
    sizes = [LEAST * 2**k for k in range(prompts.bit_length()) if LEAST * 2**k < prompts]
    return [*sizes, prompts]


def full_images(
    pipe: Any, call: Call, prompts: Sequence[Prompt], first: int, batch_size: int, store: Store | None,
    progress: Any = lambda done: None,
) -> list[np.ndarray]:  # fmt: skip
    """Returns the decoded images of full runs, from the store if they are there, as `validated` does."""
    key = content_key(pipe, call, prompts, batch_size, 1, first, "images") if store else ""
    known = store.load_images(key) if store else None
    if known is None:
        known = generate(pipe, call, prompts, batch_size=batch_size, offset=first, progress=progress).images
        check_images(known, first, "the full run")
        if store:
            store.save_images(key, known)
    return known


@dataclass(frozen=True)
class Bench:
    """What trials are made on.

    Arguments:
        pipe: A diffusers pipeline; it is not changed.
        call: How to call it.
        sets: The prompts.
        measurement: Of the full runs on all calibration prompts.
        batch_size: How many prompts a run has.
        base: A schedule with everything but the rule.
        truth: The images of full runs on the select prompts.
    """

    pipe: Any
    call: Call
    sets: Sets
    measurement: Measurement
    batch_size: int
    base: Schedule
    truth: Sequence[np.ndarray]
    _fitted: dict[tuple[str, bool], tuple[Rule, float | None]] = field(default_factory=dict, repr=False)

    @classmethod
    def of(
        cls, pipe: Any, call: Call, sets: Sets, measurement: Measurement, batch_size: int,
        store: Store | None, progress: Progress,
    ) -> Bench:  # fmt: skip
        """Returns a bench, with the images of full runs made or taken from the store."""
        few = len(sets.select)
        truth = full_images(
            pipe, call, sets.select, len(sets.fit), batch_size, store,
            lambda done: progress("full images", done, few),
        )  # fmt: skip
        times = tuple(map(float, measurement.profile.times))
        every = Rule(policy=Plan.of(range(len(times)), times), forecast=Extrapolate())
        base = assembled(pipe, call, measurement.profile, (every,))
        return cls(pipe, call, sets, measurement, batch_size, base, truth)

    def rule(self, candidate: Candidate, *, everything: bool = False) -> tuple[Rule, float | None]:
        """Fits a candidate.

        Arguments:
            candidate: What to fit.
            everything: Fit on the select prompts too, when the choice is made.

        Returns:
            The rule, and the relative squared error of the final latents where weights were matched.
        """
        known = (candidate.key, everything)
        if known in self._fitted:
            return self._fitted[known]
        prompts = self.sets.calibration if everything else list(self.sets.fit)
        measured = head(self.measurement, len(prompts), self.batch_size)
        policy = Plan.of(candidate.plan, self.base.grid.times)
        if candidate.forecast == "matched":
            matching = match(
                self.pipe, self.call, prompts, candidate.plan, measured.profile, measured.runs,
                fit=candidate.fit, batch_size=self.batch_size,
            )  # fmt: skip
            if everything:  # this one is kept, so it is told when a run is like none of these
                policy = policy.with_signals(matching.seen)
            found = Rule(policy=policy, forecast=matching.forecast), matching.error
            if everything:  # wanted again when the choice is made
                self._fitted[known] = found
            return found
        if everything:
            policy = policy.with_profile_signals(measured.profile)
        knob = "history" if candidate.forecast == "open-loop" else "order"
        kind = FORECASTS[candidate.forecast]
        forecast = kind.fit(measured.profile, candidate.plan, **{knob: candidate.order})
        return Rule(policy=policy, forecast=forecast), None

    def schedule(self, rule: Rule) -> Schedule:
        """Returns the schedule of a rule."""
        return self.base.model_copy(update={"rules": (rule,)})

    def judged(self, rule: Rule) -> Iterator[list[float]]:
        """Yields the decibels of the select prompts so far, rung by rung."""
        values: list[float] = []
        for rung in rungs(len(self.sets.select)):
            start, first = len(values), len(self.sets.fit) + len(values)
            made = generate(
                self.pipe, self.call, self.sets.select[start:rung], self.schedule(rule),
                batch_size=self.batch_size, offset=first,
            )  # fmt: skip
            check_images(made.images, first, "the run by a schedule")
            values += [psnr(a, b) for a, b in zip(made.images, self.truth[start:rung], strict=True)]
            yield list(values)
