"""From what calibration runs showed and how they ended to what a policy looks at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..fitting.kernel import Array
from ..fitting.quality import Fitted, fit_quality
from ..fitting.signals import look_rows, signals_in
from .plan import Plan, Watch
from .signals import Guess, Look

if TYPE_CHECKING:
    from ..profile import Profile

__all__ = ["learned", "watched", "watched_from_afar"]

ROOM = 3.0  # standard deviations of the innovation on each side of its band
LEAST_ROOM = 0.1  # beyond what was seen, in decades
STRAYING = 0.5  # the same where little is known: only full runs were seen, from which those by a plan stray,
FEW = 8  # or fewer prompts than this

Row = tuple[float, ...]
Seen = tuple[Row, Array]  # what an innovation is, and that of each prompt, in decades


def learned(
    plans: Sequence[Sequence[int]],
    rows: Sequence[Sequence[Sequence[Row]]],
    seen: Sequence[Sequence[Array]],
    ends: Array,
) -> tuple[Watch, dict[tuple[int, int], Array]]:
    """Fits bands, and guesses for the steps after which more than one gear is open.

    Arguments:
        plans: The computed steps of the G gears.
        rows: What is looked at, by gear and computed step after the first.
        seen: What was seen there, each with shape (P, F).
        ends: What the runs ended with, in decibels, with shape (G, P).

    Returns:
        What to look at, and by gear and number of the look what was guessed for each prompt from the others.
    """
    watch, guessed = [], {}
    for g, plan in enumerate(plans):
        looks = []
        for number, own in enumerate(rows[g]):
            guess = None
            if open_after(plans, g, number + 2):
                fitted, guessed[g, number] = fit_quality(np.concatenate(seen[g][: number + 1], 1), ends[g])
                guess = as_numbers(fitted)
            looks.append(Look(rows=tuple(own), band=band_of(seen[g][number][:, 0]), guess=guess))
        watch.append(tuple(looks))
        assert len(looks) == len(plan) - 1
    return tuple(watch), guessed


def watched(plan: Plan, seen: Sequence[Seen], least: float = LEAST_ROOM) -> Plan:
    """Returns a plan with what a guard needs.

    Arguments:
        plan: A policy with one gear.
        seen: What runs by it showed.
        least: Room beyond that, in decades.
    """
    looks = tuple(Look(rows=(row,), band=band_of(innovations, least)) for row, innovations in seen)
    return plan.model_copy(update={"watch": (looks,)})


def watched_from_afar(plan: Plan, steps: Sequence[int], profile: Profile) -> Plan:
    """Returns a plan with what a guard needs, from full runs: for forecasts that were fitted without runs.

    Arguments:
        plan: A policy with one gear.
        steps: The steps it computes.
        profile: What was measured on calibration prompts.
    """
    n = profile.steps
    rows = look_rows(profile.kernel, steps)
    seen = signals_in(profile.gram[:, :n, :n], steps, rows)
    innovations = ((own[0], signals[:, 0]) for own, signals in zip(rows, seen, strict=True))
    return watched(plan, list(innovations), STRAYING)


def open_after(plans: Sequence[Sequence[int]], gear: int, computed: int) -> bool:
    """Whether another gear computes the same first steps, and none that this one skipped."""
    return any(other[:computed] == plans[gear][:computed] for g, other in enumerate(plans) if g != gear)


def band_of(innovations: Array, least: float = LEAST_ROOM) -> tuple[float, float]:
    """Returns between which values the innovation of other prompts of the kind lies, nearly always.

    In logarithms it is bell-shaped enough for this: the mean and three standard deviations to each side, and
    some room beyond what was seen.
    """
    room, least = ROOM * float(innovations.std()), least if len(innovations) >= FEW else STRAYING
    low = min(innovations.mean() - room, innovations.min() - least)
    high = max(innovations.mean() + room, innovations.max() + least)
    return float(low), float(high)


def as_numbers(fit: Fitted) -> Guess:
    """Returns a regression as it is kept in a schedule."""

    def row(values: Array) -> Row:
        return tuple(map(float, values))

    return Guess(
        low=row(fit.low), high=row(fit.high), centre=row(fit.centre), scale=row(fit.scale),
        constant=fit.constant, linear=row(fit.linear), square=row(fit.square),
        around=tuple(map(row, fit.around)), heights=row(fit.heights), width=fit.width, r2=fit.r2,
    )  # fmt: skip
