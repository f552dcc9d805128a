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
from ..files import dump_json, write_atomically
from ..limits import NODES, first_fault, parse_json, read_bytes
from ..schedule.format import Count, Evidence, Line, Name, Part, Summary
from ..schedule.schedule import Schedule
from .candidate import Candidate, leaders

if TYPE_CHECKING:
    from .study import Search

LARGEST = 2**23  # bytes; real fronts have about 200 thousand
POINTS = 256
SURE = 2.0  # standard errors by which a trial has to be better than what calibration returns


class Point(Part):
    """A schedule of a front, and why it is there.

    Arguments:
        calls: Steps whose denoiser is called.
        select: Decibels on the select prompts, when it was fitted without them: mean and 5th percentile.
        gain: Mean decibels more there than what `calibrate` would return; 0 where that was taken.
        origin: How it was found.
        schedule: Fitted on all calibration prompts, with evidence from the held-out ones if there are any.
    """

    calls: Annotated[int, Field(ge=1, le=4096)]
    select: Summary
    gain: FiniteFloat = 0.0
    origin: Line = ""
    schedule: Schedule


class Front(Part):
    """What a search found.

    Arguments:
        name: What it is called.
        target: What was asked for.
        trials: How many trials were made.
        seed: Of the search.
        chosen: Which point meets the target, counted from the fewest calls.
        points: By rising calls; each better than those before it.

    Example:
        >>> front = Front.load("emoji-flux-28.front.json")
        >>> front.pick("10").schedule.save("ten-calls.json")
    """

    front: Literal[1] = 1  # the format
    name: Name
    target: Line
    trials: Count
    seed: Annotated[int, Field(ge=-(2**63), le=2**63)] = 0
    chosen: Annotated[int, Field(ge=0)] | None = None
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
        """Returns the best point with at most so many calls ("10"), or the fastest with a quality ("35dB").

        Raises:
            LookupError: There is none.
            ValueError: That is neither.
        """
        found = re.fullmatch(r"\s*(?:(\d{1,6})|(\d{1,6}(?:\.\d{0,6})?)\s*dB)\s*", wish, re.I)
        if not found:
            raise ValueError(f"cannot pick {wish[:40]!r}: give a number of calls (10) or a quality (35dB)")
        if found[1]:
            if few := [point for point in self.points if point.calls <= int(found[1])]:
                return few[-1]
            there = ", ".join(str(point.calls) for point in self.points)
            raise LookupError(f"no point of {self.name} makes {found[1]} calls or fewer; there are: {there}")
        if good := [point for point in self.points if point.select["mean"] >= float(found[2])]:
            return good[0]
        most = max(point.select["mean"] for point in self.points)
        raise LookupError(f"no point of {self.name} reaches {found[2]} dB; the best has {most:.1f} dB")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads a front; `ScheduleError` says what is wrong with it."""
        try:
            data = parse_json(read_bytes(path, LARGEST), POINTS * NODES)
        except OSError as error:
            why = error.strerror
            raise ScheduleError(f"cannot read {path}: {why}; `adaptcache tune` writes one") from None
        except ValueError as error:
            raise ScheduleError(f"{path} is not JSON ({error}): is it a front?") from None
        if not is_front(data):
            raise ScheduleError(f"{path} is not a front: `adaptcache tune` writes one")
        if data["front"] != 1:
            raise ScheduleError(
                f"{path} is a front of format {data['front']}, this adaptcache reads 1: update it, or tune again"
            )
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise ScheduleError(f"{path}: {first_fault(error, 'front')}") from None

    def save(self, path: str | Path) -> Path:
        """Writes the front, whole or not at all. The same front always gives the same bytes."""
        return write_atomically(path, dump_json(self.model_dump(by_alias=True, exclude_none=True)))


def is_front(data: object) -> bool:
    """Whether parsed JSON says that it is a front."""
    return isinstance(data, dict) and "front" in data and "points" in data


@dataclass(frozen=True)
class Tuned:
    """What tuning found.

    Arguments:
        schedule: The one that meets the target; of a whole front the slowest, which is the best.
        front: All that are worth having: one point where the target fixes the calls.
        sentence: What was found, for people.
        gained: Mean decibels more than what `calibrate` would return, on held-out prompts, and their standard
            error; None without them, and where the target fixes no number of calls.
        study: The name of the study in the storage.
    """

    schedule: Schedule
    front: Front
    sentence: str
    gained: tuple[float, float] | None
    study: str


def conclude(search: Search) -> Tuned:
    """Fits what a search found on all calibration prompts, and measures it on the held-out ones, slow to fast.

    For a quality the first schedule that fails is the last one measured: a certificate takes the one before.

    Raises:
        ValueError: The search ended before there was anything.
    """
    target, done, evaluator = search.proposer.target, len(search.finished), search.evaluator
    if not (pairs := find_winners(search)):
        raise ValueError(f"nothing to choose after {done} trials: give more trials or time, and resume")
    about = {"target": str(target), "trials": done, "seed": search.proposer.seed}
    name, quality = search.name or evaluator.full.name + "-tuned", target.quality
    truth, eval_prompts = reference_images(evaluator.setup, search.eval_prompts), search.eval_prompts
    points, values, certificate = list[Point](), list[list[float]](), None
    for winner, start in reversed(pairs):
        (mean, error), psnr = gain(psnr_of(winner), psnr_of(start)), psnr_of(winner)
        calls, origin = winner.params["calls"], winner.params["origin"]
        more = {"found": origin, "select": len(psnr), "gain": {"mean": mean, "standard error": error}}
        own = f"{name}-{calls}-calls" if len(pairs) > 1 else name
        schedule = build_final(search, winner, {**about, **more}, own)
        if truth and not (
            quality and values and certify(values[-1:], quality, groups=search.groups).certified is None
        ):
            values.append(evaluator.score(schedule, eval_prompts, truth))
            evaluator.setup.progress("held-out, by schedule", len(values), len(pairs))
            schedule = with_evidence(schedule, evidence_of(values[-1], calls, search.steps))
        points.append(Point(calls=calls, select=summary(psnr), gain=mean, origin=origin, schedule=schedule))
    chosen, gained, schedule = None, None, points[0].schedule
    sentence = f"{len(points)} schedules, from {points[-1].calls} to {points[0].calls} calls."
    if quality:
        certificate = certify(
            values, quality, settings=[f"{point.calls} calls" for point in points[: len(values)]],
            prompts=f"{len(truth)} held-out prompts", groups=search.groups,
        )  # fmt: skip
        if (at := certificate.certified) is None:
            schedule = compute_all(schedule, certificate)
            sentence = f"The full run alone meets {target}. {schedule.evidence.verdict}"
        else:
            evidence = points[at].schedule.evidence.model_copy(update={"certificate": certificate})
            schedule, sentence = with_evidence(points[at].schedule, evidence), certificate.sentence
            points[at] = points[at].model_copy(update={"schedule": schedule})
            chosen = len(points) - 1 - at
    elif len(search.proposer.choices) == 1:
        chosen, (winner, start) = 0, pairs[0]
        if values:
            before = values[0]
            if winner.number != start.number:
                before = evaluator.score(build_final(search, start, about, name), eval_prompts, truth)
            gained = gain(values[0], before)
        sentence = describe_choice(search, points[0], gained)
    front = Front(name=name, **about, chosen=chosen, points=tuple(points[::-1]))
    schedule = schedule.model_copy(update={"name": name})
    return Tuned(schedule, front, sentence, gained, search.study.study_name)


def find_winners(search: Search) -> list[tuple[Any, Any]]:
    """Returns the best trials by rising calls, each better than those before, beside that of `calibrate`.

    The best of many noisy values was lucky too: where it does not beat what `calibrate` would return by more than
    two standard errors, that is taken. `calibrate` fits on all calibration prompts, and so may rank its plans
    otherwise than the trials did.
    """
    found: list[tuple[Any, Any]] = []
    for calls in search.proposer.choices:
        best, starts = leaders(search.finished, calls), search.proposer.starts(calls)
        tried = [(Candidate.suggest(trial, search.steps), trial) for trial in best]
        tried = sorted((pair for pair in tried if pair[0] in starts), key=lambda pair: pair[0].plan)
        if not tried:
            continue
        start = tried[0][1]
        if len(tried) > 1:
            start = min(tried, key=lambda pair: search.evaluator.fit(pair[0], everything=True)[1])[1]
        mean, error = gain(psnr_of(best[0]), psnr_of(start))
        winner = best[0] if mean > SURE * error else start
        if not found or winner.value > found[-1][0].value:
            found.append((winner, start))
    return found


def build_final(search: Search, trial: Any, about: dict[str, Any], name: str) -> Schedule:
    """Returns the schedule of a trial, fitted on all calibration prompts."""
    evaluator, candidate = search.evaluator, Candidate.suggest(trial, search.steps)
    rules = (evaluator.fit(candidate, everything=True)[0],)
    fit = {"history": candidate.history, "ridge": candidate.ridge, "tuning": about}
    made = {"prompts": len(evaluator.prompts), **fit}
    return build_schedule(evaluator.setup, evaluator.measurement.profile, rules, made, name)


def with_evidence(schedule: Schedule, evidence: Evidence) -> Schedule:
    """Returns a schedule with its evidence."""
    return schedule.model_copy(update={"evidence": evidence})


def psnr_of(trial: Any) -> list[float]:
    """Returns the decibels of a trial, by select prompt."""
    return [value for _, value in sorted(trial.intermediate_values.items())]


def gain(values: Sequence[float], over: Sequence[float]) -> tuple[float, float]:
    """Returns the mean difference of decibels over prompts, and its standard error."""
    differences = np.array(values) - np.array(over)
    error = float(np.std(differences, ddof=1) / len(differences) ** 0.5) if len(differences) > 1 else 0.0
    return float(differences.mean()), error


def describe_choice(search: Search, point: Point, gained: tuple[float, float] | None) -> str:
    """Says what was chosen for a number of calls, what it gained over `calibrate`, and how long it takes."""
    sentence = f"{point.calls} calls: no trial was surely better than what calibrate returns, so it is that."
    if point.calls == search.steps:
        sentence = f"The full run alone meets {search.proposer.target}: all {point.calls} steps are computed."
    elif point.gain != 0.0:
        sentence = f"{point.calls} calls: {point.gain:+.2f} dB over calibrate on the prompts it was chosen by"
        sentence += f", {gained[0]:+.2f} ± {gained[1]:.2f} dB on held-out prompts." if gained else "."
    if search.proposer.target.max_latency is not None:
        sentence += f" One image takes {search.evaluator.latency(point.schedule.rules[0]):.3g} s."
    return sentence
