"""What a search comes to: a front, the schedule that meets the target, and a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..profiling.cache import Store
from ..schedule.schedule import Schedule
from .finish import Finish, winners
from .front import Front, Point
from .latency import seconds_of
from .race import Seen, gain
from .search import Search

__all__ = ["Tuned", "concluded"]


@dataclass(frozen=True)
class Tuned:
    """What tuning found.

    Arguments:
        schedule: The one that meets the target; of a whole front the slowest, which is the best.
        front: All that are worth having: one point where the target fixes the calls.
        sentence: What was found, for people.
        gained: Mean decibels more than what `calibrate` would return, on held-out prompts, and their
            standard error; None without them, and where no number of calls was asked for.
        study: The name of the study in the storage.
    """

    schedule: Schedule
    front: Front
    sentence: str
    gained: tuple[float, float] | None
    study: str


def concluded(search: Search, store: Store | None = None, name: str | None = None) -> Tuned:
    """Returns what a search found.

    Arguments:
        search: One that was run.
        store: Where full images are kept.
        name: What the schedule is called.

    Raises:
        ValueError: It ended before there was anything.
    """
    found, seed = winners(search), search.proposer.seed
    done = len(search.finished())
    if not found:
        raise ValueError(f"nothing to choose after {done} trials: give more trials or time, and resume")
    finish = Finish(search, store, {"target": str(search.target), "trials": done, "seed": seed})
    name = name or search.bench.base.name + "-tuned"
    points = [_named(finish.point(*pair), name, len(found) > 1) for pair in found]
    gained, chosen, schedule = None, None, None
    if search.target.min_psnr is not None:
        points, chosen, schedule, sentence = _certified(finish, points)
    else:
        points, values = _measured(finish, points)
        sentence = f"{len(points)} schedules, from {points[0].calls} to {points[-1].calls} calls."
        if len(search.choices) == 1:
            chosen = 0
            gained = _gained(finish, *found[0], values[0]) if values else None
            sentence = _compared(points[0], gained) + _timed(search, points[0])
    schedule = (schedule or points[-1].schedule).model_copy(update={"name": name})
    front = Front(
        name=name, target=str(search.target), trials=done, seed=seed, chosen=chosen, points=tuple(points)
    )
    return Tuned(schedule, front, sentence, gained, search.study.study_name)


def _named(point: Point, name: str, several: bool) -> Point:
    """Returns a point whose schedule has a name."""
    own = f"{name}-{point.calls}-calls" if several else name
    return point.model_copy(update={"schedule": point.schedule.model_copy(update={"name": own})})


def _with(point: Point, finish: Finish, values: Sequence[float], **more: object) -> Point:
    """Returns a point with the evidence of held-out prompts."""
    evidence = finish.evidence(point.calls, values, **more)
    return point.model_copy(update={"schedule": point.schedule.model_copy(update={"evidence": evidence})})


def _measured(finish: Finish, points: Sequence[Point]) -> tuple[list[Point], list[list[float]]]:
    """Returns the points with evidence, and their decibels; as they are where nothing is held out."""
    if not finish.search.bench.sets.report:
        return list(points), []
    values = []
    for number, point in enumerate(points):
        values.append(finish.values(point.schedule))
        finish.search.progress("held-out, by schedule", number + 1, len(points))
    return [_with(point, finish, own) for point, own in zip(points, values, strict=True)], values


def _gained(finish: Finish, winner: Seen, start: Seen, values: Sequence[float]) -> tuple[float, float]:
    """Returns the decibels that tuning gained on held-out prompts, and their standard error."""
    if winner.candidate == start.candidate:
        return 0.0, 0.0
    return gain(values, finish.values(finish.schedule(start.candidate, {})))


def _compared(point: Point, gained: tuple[float, float] | None) -> str:
    """Says what was gained over `calibrate`."""
    if point.gain == 0.0:
        return f"{point.calls} calls: no trial was surely better than what calibrate returns, so it is that."
    chosen = f"{point.calls} calls: {point.gain:+.2f} dB over calibrate on the prompts it was chosen by"
    return chosen + (f", {gained[0]:+.2f} ± {gained[1]:.2f} dB on held-out prompts." if gained else ".")


def _timed(search: Search, point: Point) -> str:
    """Says how long an image takes, where that was asked for."""
    bench = search.bench
    if search.target.max_latency is None:
        return ""
    return f" One image takes {seconds_of(bench.pipe, bench.call, bench.sets.fit[0], point.schedule):.3g} s."


def _certified(finish: Finish, points: Sequence[Point]) -> tuple[list[Point], int | None, Schedule, str]:
    """Tests points from slow to fast, and takes the last that passes.

    Returns:
        The points, with evidence where they were tested; which one was taken; its schedule, or one that
        computes everything; and what is known.
    """
    points, values, tested = list(points), list[list[float]](), list[Point]()
    for point in reversed(points):
        values.append(finish.values(point.schedule))
        tested.append(point)
        finish.search.progress("certificate", len(tested), len(points))
        if not finish.passes(values[-1]):
            break  # what is faster is not tested any more, and costs no runs
    certificate = finish.certified(tested, values)
    for position, own in enumerate(values):
        number = len(points) - 1 - position
        more = {"certificate": certificate} if position == certificate.certified else {}
        points[number] = _with(points[number], finish, own, **more)
    if certificate.certified is None:
        schedule = finish.nothing(certificate)
        assert schedule.evidence is not None and schedule.evidence.verdict is not None
        return points, None, schedule, schedule.evidence.verdict
    chosen = len(points) - 1 - certificate.certified
    return points, chosen, points[chosen].schedule, certificate.sentence
