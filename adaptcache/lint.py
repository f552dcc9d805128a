"""What is wrong with a schedule, as far as that can be told without running it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .fitting.polynomial import scores
from .policies.magnitude import Magnitude
from .policies.polynomial import Polynomial
from .replay import calls_of, replayed
from .schedule import Schedule

if TYPE_CHECKING:
    from .profile import Profile

__all__ = ["Finding", "cliffs", "lint", "reach"]

SEEN = (0.0, 0.6)  # changes of modulated inputs that occur in published models
WEAK = 0.5  # R2 below which a predictor is little better than a constant


@dataclass(frozen=True)
class Finding:
    """Something a user should know.

    Arguments:
        level: "error": it does not do what it is for; "warning": look at it.
        code: Short name: inert, always, negative, not-monotone, extrapolates, weak, cliff, ratios.
        message: What it is, with the numbers, and the cure.
    """

    level: Literal["error", "warning"]
    code: str
    message: str


def reach(policy: Polynomial, x: tuple[float, float] = SEEN) -> tuple[float, float, float]:
    """Returns the smallest value of a polynomial over all changes, where it is, and its largest in a range.

    Arguments:
        policy: Its clamp, if it has one, limits what counts.
        x: The range of changes for the largest value.
    """
    low, high = policy.clamp or (0.0, 10.0)
    derivative = np.polyder(np.poly1d(policy.coefficients))
    turns = [float(r.real) for r in derivative.roots if abs(r.imag) < 1e-9 and low < r.real < high]
    points = np.array([low, high, *turns, *np.linspace(low, min(high, x[1]), 200)])
    values = np.polyval(policy.coefficients, points)
    inside = values[(points >= max(low, x[0])) & (points <= min(high, x[1]))]
    return float(values.min()), float(points[values.argmin()]), float(inside.max())


def lint(schedule: Schedule, profile: Profile | None = None) -> list[Finding]:
    """Returns what is wrong with a schedule.

    Arguments:
        schedule: What to look at.
        profile: What was measured on the pipeline it is for; scores its numbers and finds its cliffs.
    """
    found = []
    for rule in schedule.rules:
        policy = rule.policy
        if isinstance(policy, Polynomial):
            found += of_polynomial(policy)
            found += [] if profile is None else on_profile(policy, profile)
        elif isinstance(policy, Magnitude):
            found += of_ratios(policy, len(schedule.grid.times) or len(policy.ratios))
        if profile is not None:
            found += of_plan(policy, profile)
    return found


def of_polynomial(policy: Polynomial, x: tuple[float, float] = SEEN) -> list[Finding]:
    """Returns what a polynomial and its threshold say by themselves."""
    least, where, _ = reach(policy, x)
    low, high = policy.clamp or x
    values = np.polyval(policy.coefficients, np.linspace(low, high, 400))
    found = []
    if policy.threshold <= least:
        found.append(Finding(
            "error", "inert",
            f"the threshold {policy.threshold:g} can never skip: the polynomial is at least {least:.4g} (at a change "
            f"of {where:.3g}); take a threshold above that",
        ))  # fmt: skip
    elif least > 0 and policy.threshold < 1.25 * least:
        found.append(Finding(
            "warning", "cliff",
            f"the threshold {policy.threshold:g} lies just above {least:.4g}, the least the polynomial can be: "
            "a little less never skips",
        ))  # fmt: skip
    if values.min() < 0:
        found.append(Finding(
            "warning", "negative",
            f"the polynomial is negative (down to {values.min():.4g}) for changes in [{low:g}, {high:g}]: there a larger "
            "change makes it skip longer; fit a rising one",
        ))  # fmt: skip
    if (np.diff(values) < -1e-9).any():
        share = float((np.diff(values) < 0).mean())
        found.append(Finding(
            "warning", "not-monotone",
            f"the polynomial falls on {share:.0%} of [{low:g}, {high:g}]: larger changes may count less; fit a rising one",
        ))  # fmt: skip
    if policy.clamp is None:
        found.append(Finding(
            "warning", "extrapolates",
            "the polynomial says nothing about the range it was fitted on: outside of it, it is a guess; set a clamp",
        ))  # fmt: skip
    return found + weak(policy.r2, policy.rank, "held-out prompts")


def weak(r2: float | None, rank: float | None, where: str) -> list[Finding]:
    """Returns a finding where a predictor predicts badly."""
    if r2 is None or rank is None or r2 >= WEAK:
        return []
    message = (
        f"R2 {r2:.2f}, rank correlation {rank:.2f} on {where}: it hardly predicts; a plan needs no prediction"
    )
    return [Finding("warning", "weak", message)]


def on_profile(policy: Polynomial, profile: Profile) -> list[Finding]:
    """Returns how well a polynomial, of whatever origin, predicts on a profile."""
    x, y = profile.change_in[:, 1:].ravel(), profile.change_out[:, 1:].ravel()
    low, high = policy.clamp or (-np.inf, np.inf)
    found = weak(*scores(np.polyval(policy.coefficients, np.clip(x, low, high)), y), "this profile")
    outside = float(((x < low) | (x > high)).mean())
    if outside > 0.05:
        found.append(Finding(
            "warning", "extrapolates",
            f"{outside:.0%} of the changes measured lie outside of [{low:.3g}, {high:.3g}], where it was fitted",
        ))  # fmt: skip
    return found


def of_ratios(policy: Magnitude, steps: int) -> list[Finding]:
    """Returns what a list of ratios and its limits say by themselves."""
    grid = tuple(1 - i / steps for i in range(steps))
    made = {flag: sum(m) for flag, m in ((f, with_flat(policy, f).init(grid)) for f in (False, True))}
    found = []
    if all(policy.init(grid)):
        found.append(
            Finding("error", "inert", f"the threshold {policy.threshold:g} skips none of {steps} steps")
        )
    elif made[False] == made[True]:
        found.append(Finding(
            "warning", "ratios",
            f"{policy.max_skip} skips at most: the plan would be the same with all ratios 1; raise the limit or use "
            "`uniform`",
        ))  # fmt: skip
    if steps != len(policy.ratios):
        found.append(Finding(
            "warning", "extrapolates",
            f"{len(policy.ratios)} ratios for {steps} steps: ratios of neighbouring steps depend on their number",
        ))  # fmt: skip
    return found


def with_flat(policy: Magnitude, flat: bool) -> Magnitude:
    """Returns the policy, or the same with all ratios 1."""
    return policy.model_copy(update={"ratios": (1.0,) * len(policy.ratios)}) if flat else policy


def of_plan(policy: Any, profile: Profile) -> list[Finding]:
    """Returns what a policy does on a profile: nothing, everything, or something else at the next threshold."""
    calls = calls_of(policy, profile)
    found = []
    if calls == profile.steps:
        found.append(Finding("error", "inert", f"it computes all {profile.steps} steps on this profile"))
    if calls <= 2 < profile.steps:
        found.append(
            Finding("warning", "always", f"it computes {calls:g} of {profile.steps} steps on this profile")
        )
    for threshold, before, after in cliffs(policy, profile, near=0.1):
        found.append(Finding(
            "warning", "cliff",
            f"at the threshold {threshold:.4g} the calls go from {before} to {after} of {profile.steps}, and "
            f"{policy.threshold:g} is near",
        ))  # fmt: skip
    return found


def cliffs(
    policy: Any, profile: Profile, near: float | None = None, jump: int = 3
) -> list[tuple[float, int, int]]:
    """Returns the thresholds at which a policy's plan changes much, with the calls before and after.

    Arguments:
        policy: A policy with a threshold; others have no cliffs.
        profile: What it is replayed on, with its first prompt.
        near: Look within this fraction of the policy's own threshold; None looks everywhere.
        jump: How many calls are much; 1 lists every change.
    """
    own = getattr(policy, "threshold", None)
    if not own:
        return []
    span = (own * (1 - near), own * (1 + near)) if near else (own / 100, own * 100)
    grid: Sequence[float] = np.geomspace(*span, 41 if near else 161).tolist()
    calls = [len(replayed(policy.model_copy(update={"threshold": t}), profile)) for t in grid]
    pairs = itertools.pairwise(zip(grid, calls, strict=True))
    return [(b, before, after) for (_, before), (b, after) in pairs if abs(after - before) >= jump]
