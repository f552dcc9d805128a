"""From trials to schedules: chosen on the select prompts, fitted on all, measured on held-out ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..calibration.fit import assembled
from ..evaluation.certify import Certificate, certify, upper_bound
from ..evaluation.generate import generate
from ..evaluation.metrics import CEILING, psnr, summary
from ..evaluation.validate import check_images
from ..profiling.cache import Store
from ..schedule.format import Evidence
from ..schedule.schedule import Schedule
from .aims import calibrated
from .bench import full_images
from .candidate import Candidate
from .front import Point
from .race import Seen, best, chosen, gain
from .search import Search

__all__ = ["Finish", "winners"]


def winners(search: Search) -> list[tuple[Seen, Seen]]:
    """Returns the best trials by rising calls, each better than those before, beside that of `calibrate`."""
    found: list[tuple[Seen, Seen]] = []
    seen = search.finished()
    for calls in search.choices:
        winner, start = best(seen, calls), calibrated(seen, search.proposer, search.bench, calls)
        if winner is None or start is None:
            continue
        winner = chosen(winner, start)
        if not found or (winner.worth or 0.0) > (found[-1][0].worth or 0.0):
            found.append((winner, start))
    return found


@dataclass(frozen=True)
class Finish:
    """Makes schedules of what a search found.

    Arguments:
        search: The search.
        store: Where full images are kept.
        about: What the provenance of the schedules says of the search.
    """

    search: Search
    store: Store | None
    about: dict[str, Any]

    def schedule(self, candidate: Candidate, more: dict[str, Any]) -> Schedule:
        """Returns a schedule, fitted on all calibration prompts."""
        bench = self.search.bench
        rule, _ = bench.rule(candidate, everything=True)
        matched = {"history": candidate.history, "ridge": candidate.ridge}
        about = {
            "prompts": len(bench.sets.calibration),
            **(matched if candidate.forecast == "matched" else {}),
            "tuning": {**self.about, **more},
        }
        return assembled(bench.pipe, bench.call, bench.measurement.profile, (rule,), about)

    def point(self, winner: Seen, start: Seen) -> Point:
        """Returns a point of the front, without evidence."""
        mean, error = gain(winner.psnr, start.psnr)
        more = {
            "found": winner.candidate.origin, "select": len(winner.psnr),
            "gain": {"mean": mean, "standard error": error},
        }  # fmt: skip
        return Point(
            calls=winner.candidate.calls, select=summary(list(winner.psnr)), gain=mean,
            origin=winner.candidate.origin, schedule=self.schedule(winner.candidate, more),
        )  # fmt: skip

    def values(self, schedule: Schedule) -> list[float]:
        """Returns the decibels of the held-out prompts by a schedule."""
        bench, progress = self.search.bench, self.search.progress
        held_out, first = bench.sets.report, len(bench.sets.calibration)
        truth = full_images(
            bench.pipe, bench.call, held_out, first, bench.batch_size, self.store,
            lambda done: progress("held-out, full", done, len(held_out)),
        )  # fmt: skip
        made = generate(bench.pipe, bench.call, held_out, schedule, batch_size=bench.batch_size, offset=first)
        check_images(made.images, first, "the run by the schedule")
        return [psnr(a, b) for a, b in zip(made.images, truth, strict=True)]

    def evidence(self, calls: int, values: Sequence[float], **more: Any) -> Evidence:
        """Returns the evidence of a schedule."""
        steps = len(self.search.bench.base.grid.times)
        return Evidence(
            prompts=f"{len(values)} held-out", n=len(values), calls=(calls, steps),
            psnr=summary(list(values)), speed=steps / calls, **more,
        )  # fmt: skip

    def certified(self, points: Sequence[Point], values: Sequence[Sequence[float]]) -> Certificate:
        """Tests points, given by falling calls, with the decibels of their held-out prompts."""
        target = self.search.target
        assert target.min_psnr is not None
        return certify(
            np.array(values), target.min_psnr, target.at_most, target.confidence,
            settings=[f"{point.calls} calls" for point in points],
            prompts=f"{len(values[0])} held-out prompts",
        )  # fmt: skip

    def passes(self, values: Sequence[float]) -> bool:
        """Whether a schedule's held-out prompts pass the test; what is faster is not tested otherwise."""
        target = self.search.target
        failures = sum(value < (target.min_psnr or 0.0) for value in values)
        return upper_bound(failures, len(values), target.confidence) <= target.at_most

    def nothing(self, certificate: Certificate) -> Schedule:
        """Returns the schedule that computes every step, which is exact, and says why."""
        bench = self.search.bench
        steps, count = len(bench.base.grid.times), len(bench.sets.report)
        claim = (
            f"{100 * (1 - certificate.max_failure_rate):g} % of prompts at {certificate.target:g} dB or more"
        )
        verdict = (
            f"Do not cache: no plan that skips calls is certain to keep {claim} "
            f"({certificate.setting}: {certificate.failures} of {certificate.n} held-out prompts fall below, "
            f"so up to {100 * certificate.upper:.1f} % may). Every step is computed."
        )
        seen = self.evidence(steps, [CEILING] * count, certificate=certificate, verdict=verdict)
        about = {"prompts": len(bench.sets.calibration), "tuning": self.about}
        base = assembled(bench.pipe, bench.call, bench.measurement.profile, bench.base.rules, about)
        return base.model_copy(update={"evidence": seen})
