"""The front: what a search found, the schedule of it that meets the target, and a sentence about it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, FiniteFloat, ValidationError, model_validator

from ..calibration.fit import build_schedule
from ..errors import ScheduleError
from ..evaluation.certify import certify
from ..evaluation.generate import reference_images
from ..evaluation.metrics import summary
from ..evaluation.validate import compute_all, evidence_of
from ..limits import NODES, first_fault
from ..schedule.format import Count, Line, Name, Part, Summary, read_artifact
from ..schedule.schedule import Schedule
from .evaluator import Candidate, leaders

if TYPE_CHECKING:
    from .study import Search

LARGEST, POINTS = 2**23, 256  # bytes (real fronts have about 200 thousand), and schedules
SURE = 2.0  # standard errors by which a trial has to be better than what calibration returns


class Point(Part):
    """A schedule of a front, and why it is there."""

    calls: Annotated[int, Field(ge=1, le=4096)]  # steps whose denoiser is called
    select: Summary  # decibels on the select prompts, when it was fitted without them: mean and 5th percentile
    gain: FiniteFloat = 0.0  # mean decibels more there than what `calibrate` finds; 0 where that was taken
    origin: Line = ""  # how it was found
    schedule: Schedule  # fitted on all calibration prompts, with evidence from the held-out ones if there are any


class Front(Part):
    """What a search found."""

    front: Literal[1] = 1  # the format
    name: Name
    target: Line  # what was asked for
    trials: Count  # how many trials were made
    seed: Annotated[int, Field(ge=-(2**63), le=2**63)] = 0  # of the search
    chosen: Annotated[int, Field(ge=0)] | None = None  # which point meets the target, counted from the fewest calls
    # by rising calls; each better than those before it
    points: Annotated[tuple[Point, ...], Field(min_length=1, max_length=POINTS)]

    @model_validator(mode="after")
    def _points_rise(self) -> Self:
        calls = [point.calls for point in self.points]
        if calls != sorted(set(calls)):
            raise ValueError("the points must have rising numbers of calls")
        if self.chosen is not None and self.chosen >= len(calls):
            raise ValueError(f"point {self.chosen} was chosen, there are {len(calls)}")
        return self

    def pick(self, wish: str) -> Point:
        """Returns the best point with at most some calls ("10"), or the fastest with a quality ("35dB")."""
        found = re.fullmatch(r"\s*(?:(\d{1,6})|(\d{1,6}(?:\.\d{0,6})?)\s*dB)\s*", wish, re.I)
        if not found:
            raise ValueError(f"cannot pick {wish[:40]!r}: give a number of calls (10) or a quality (35dB)")
        for point in self.points[::-1] if found[1] else self.points:
            if point.calls <= int(found[1]) if found[1] else point.select["mean"] >= float(found[2]):
                return point
        there = ", ".join(f"{point.calls} ({point.select['mean']:.1f} dB)" for point in self.points)
        raise LookupError(f"no point of {self.name} has {wish.strip()}; there are calls {there}")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads a front; `ScheduleError` says what is wrong with it."""
        data = read_artifact(path, "front", "tune", LARGEST, POINTS * NODES)
        if not isinstance(data, dict) or "front" not in data:
            raise ScheduleError(f"{path} is not a front: `adaptcache tune` writes one")
        if data["front"] != 1:
            raise ScheduleError(
                f"{path} has front format {data['front']}, this adaptcache reads 1: update, or tune again"
            )
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise ScheduleError(f"{path}: {first_fault(error, 'front')}") from None


def holds_front(path: Path) -> bool:
    """Whether a file says that it is a front; what cannot be read is no front."""
    try:
        data = read_artifact(path, "front", "tune", LARGEST, POINTS * NODES)
    except ScheduleError:
        return False
    return isinstance(data, dict) and "front" in data and "points" in data


@dataclass(frozen=True)
class Tuned:
    """What tuning found."""

    schedule: Schedule  # the one that meets the target; of a whole front the slowest, which is the best
    front: Front  # all that are worth having: one point where the target fixes the calls
    sentence: str  # what was found, for people
    # mean decibels more than what `calibrate` finds, on held-out prompts, and their standard error; None
    # without them, and where the target fixes no number of calls
    gained: tuple[float, float] | None
    study: str  # the name of the study in the storage


def conclude(search: Search) -> Tuned:
    """Fits what a search found on all calibration prompts, and measures it on the held-out ones."""
    target, done, evaluator = search.sampler.target, len(search.finished), search.evaluator
    if not (pairs := find_winners(search)):
        raise ValueError(f"nothing to choose after {done} trials: give more trials or time, and resume")
    about = {"target": str(target), "trials": done, "seed": search.sampler.seed}
    name, setup = search.options.name or evaluator.full.name.removesuffix("-1x") + "-tuned", evaluator.setup
    truth = reference_images(setup, search.eval_prompts)

    def build(trial: Any, own: str, **more: Any) -> tuple[Schedule, list[float]]:
        candidate, profile = Candidate.suggest(trial, search.steps), evaluator.measurement.profile
        made = {"prompts": len(evaluator.prompts), "history": candidate.history, "ridge": candidate.ridge}
        rules = (evaluator.fit(candidate, True)[0],)
        schedule = build_schedule(setup, profile, rules, {**made, "tuning": {**about, **more}}, own)
        return schedule, evaluator.score(schedule, search.eval_prompts, truth) if truth else []

    points, values = list[Point](), list[list[float]]()
    for winner, start in reversed(pairs):  # from slow to fast
        psnr, calls, origin = psnr_of(winner), winner.params["calls"], winner.params["origin"]
        mean, error = gain(psnr, psnr_of(start))
        more = {"found": origin, "select": len(psnr), "gain": {"mean": mean, "standard error": error}}
        schedule, own = build(winner, f"{name}-{calls}-calls" if len(pairs) > 1 else name, **more)
        evidence = evidence_of(own, calls, search.steps) if own else None
        schedule = schedule.model_copy(update={"evidence": evidence})
        points.append(Point(calls=calls, select=summary(psnr), gain=mean, origin=origin, schedule=schedule))
        values.append(own)
        setup.progress("held-out, by schedule", len(values), len(pairs))
    chosen, gained, schedule = None, None, points[0].schedule
    sentence = f"{len(points)} schedules, from {points[-1].calls} to {points[0].calls} calls."
    if target.quality:
        settings, prompts = [f"{point.calls} calls" for point in points], f"{len(truth)} held-out prompts"
        groups = search.options.groups
        proof = certify(values, target.quality, settings=settings, prompts=prompts, groups=groups)
        schedule = compute_all(schedule, proof)
        sentence = f"Do not cache: the full run alone meets {target}. {proof.sentence}"
        if (at := proof.certified) is not None:
            chosen, sentence = len(points) - 1 - at, proof.sentence
            evidence = evidence_of(values[at], points[at].calls, search.steps, certificate=proof)
            schedule = points[at].schedule.model_copy(update={"evidence": evidence})
            points[at] = points[at].model_copy(update={"schedule": schedule})
    elif len(search.sampler.choices) == 1:
        chosen, (winner, start), point = 0, pairs[0], points[0]
        before = values[0] if winner is start else build(start, name)[1]
        gained = gain(values[0], before) if truth else None
        sentence = f"{point.calls} calls: no trial was surely better than what calibrate returns."
        if point.calls == search.steps:
            sentence = f"The full run alone meets {target}: all {search.steps} steps are computed."
        elif winner is not start:
            sentence = f"{point.calls} calls: {point.gain:+.2f} dB over calibrate on the select prompts"
            sentence += f", {gained[0]:+.2f} ± {gained[1]:.2f} dB on held-out ones." if gained else "."
        if target.max_latency is not None:
            sentence += f" One image takes {evaluator.latency(schedule.rules[0]):.3g} s."
    front = Front(name=name, **about, chosen=chosen, points=tuple(points[::-1]))
    schedule = schedule.model_copy(update={"name": name})
    return Tuned(schedule, front, sentence, gained, search.study.study_name)


def find_winners(search: Search) -> list[tuple[Any, Any]]:
    """Returns the best trials by rising calls, each better than those before, beside that of `calibrate`.

    The best of many noisy values was lucky too: it has to beat what `calibrate` finds by more than two
    standard errors.
    """
    found: list[tuple[Any, Any]] = []
    for calls in search.sampler.choices:
        best = leaders(search.finished, calls)
        tried = {Candidate.suggest(trial, search.steps): trial for trial in best}
        if best and (start := tried.get(search.sampler.start(calls))):
            mean, error = gain(psnr_of(best[0]), psnr_of(start))
            winner = best[0] if mean > SURE * error else start
            if not found or winner.value > found[-1][0].value:
                found.append((winner, start))
    return found


def psnr_of(trial: Any) -> list[float]:
    """Returns the decibels of a trial, by select prompt."""
    return [value for _, value in sorted(trial.intermediate_values.items())]


def gain(values: Sequence[float], over: Sequence[float]) -> tuple[float, float]:
    """Returns the mean difference of decibels over prompts, and its standard error."""
    differences = np.array(values) - np.array(over)
    spread = float(np.std(differences, ddof=1)) if len(differences) > 1 else 0.0
    return float(differences.mean()), spread / len(differences) ** 0.5
