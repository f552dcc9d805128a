"""What is wrong with a schedule, as far as that can be told without running it."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..fitting.polynomial import scores
from ..policies.base import Policy
from ..policies.magnitude import Magnitude
from ..policies.polynomial import Polynomial
from ..policies.replay import count_calls, replay
from ..profile import Profile
from ..schedule.schedule import Schedule
from .formats.mask import played_steps, reuse

SEEN = (0.0, 0.6)  # changes of modulated inputs that occur in published models
WEAK = 0.5  # R2 below which a predictor is little better than a constant
FAR = 10.0  # no change is as large


@dataclass(frozen=True)
class Fault:
    """Something a user should know."""

    level: Literal["error", "warning"]  # "error": it does not do what it is for; "warning": look at it
    code: str  # short name: inert, always, negative, not-monotone, extrapolates, weak, cliff, ratios
    message: str  # what it is, with the numbers, and the cure


def lint(schedule: Schedule, profile: Profile | None = None) -> list[Fault]:
    """Returns what is wrong with a schedule; a profile of its pipeline scores its numbers and finds its cliffs."""
    return [fault for rule in schedule.rules for fault in faults_of(rule.policy, schedule, profile)]


def faults_of(policy: Policy, schedule: Schedule, profile: Profile | None) -> Iterator[Fault]:
    """Yields what is wrong with one policy of a schedule."""
    if isinstance(policy, Polynomial):
        yield from lint_polynomial(policy)
        yield from () if profile is None else score_polynomial(policy, profile)
    elif isinstance(policy, Magnitude):
        yield from lint_ratios(policy, len(schedule.grid.times) or len(policy.ratios))
    if profile is not None:
        yield from lint_plan(policy, profile)


def lint_polynomial(policy: Polynomial) -> Iterator[Fault]:
    """Yields what a polynomial and its threshold tell by themselves."""
    least, where = find_least(policy)
    low, high = policy.clamp or SEEN
    values = np.polyval(policy.coefficients, np.linspace(low, high, 400))
    threshold, span = policy.threshold, f"[{low:.3g}, {high:.3g}]"
    if threshold <= least:
        why = f"the polynomial is at least {least:.4g} (at a change of {where:.3g}); take one above that"
        yield Fault("error", "inert", f"the threshold {threshold:g} never skips: {why}")
    elif least > 0 and threshold < 1.25 * least:
        why = f"the polynomial is at least {least:.4g}, and a little less never skips"
        yield Fault("warning", "cliff", f"the threshold {threshold:g} is on an edge: {why}")
    if values.min() < 0:
        why = f"down to {values.min():.4g} for changes in {span}, and there more change skips longer"
        yield Fault("warning", "negative", f"the polynomial is negative, {why}; fit a rising one")
    if (falls := np.diff(values) < -1e-9).any():
        why = f"on {falls.mean():.0%} of {span}, so that more change may count less"
        yield Fault("warning", "not-monotone", f"the polynomial falls {why}; fit a rising one")
    if policy.clamp is None:
        why = "outside of the range it was fitted on, which it does not say, it is a guess"
        yield Fault("warning", "extrapolates", f"the polynomial has no clamp: {why}")
    yield from lint_scores(policy.r2, policy.rank, "held-out prompts")


def find_least(policy: Polynomial) -> tuple[float, float]:
    """Returns the smallest value of a polynomial over all changes that can occur, and where it is."""
    low, high = policy.clamp or (0.0, FAR)
    turns = np.polyder(np.poly1d(policy.coefficients)).roots
    inside = [float(r.real) for r in turns if abs(r.imag) < 1e-9 and low < r.real < high]
    points = np.array([low, high, *inside])
    values = np.polyval(policy.coefficients, points)
    return float(values.min()), float(points[values.argmin()])


def lint_scores(r2: float | None, rank: float | None, where: str) -> Iterator[Fault]:
    """Yields a fault where a predictor predicts badly."""
    if r2 is not None and rank is not None and r2 < WEAK:
        score = f"R2 {r2:.2f}, rank correlation {rank:.2f} on {where}"
        yield Fault("warning", "weak", f"{score}: it hardly predicts; a plan needs no prediction")


def score_polynomial(policy: Polynomial, profile: Profile) -> Iterator[Fault]:
    """Yields how badly a polynomial, of whatever origin, predicts on a profile."""
    x, y = profile.change_in[:, 1:].ravel(), profile.change_out[:, 1:].ravel()
    low, high = policy.clamp or (-np.inf, np.inf)
    yield from lint_scores(*scores(np.polyval(policy.coefficients, np.clip(x, low, high)), y), "this profile")
    outside = float(((x < low) | (x > high)).mean())
    if outside > 0.05:
        where = f"outside of [{low:.3g}, {high:.3g}], where it was fitted"
        yield Fault("warning", "extrapolates", f"{outside:.0%} of the changes measured lie {where}")


def lint_ratios(policy: Magnitude, steps: int) -> Iterator[Fault]:
    """Yields what a list of ratios and its limits tell by themselves."""
    flat = policy.model_copy(update={"ratios": (1.0,) * len(policy.ratios)})
    plan, flat_plan = (played_steps(reuse(one).rule, steps) for one in (policy, flat))
    if len(plan) == steps:
        yield Fault("error", "inert", f"the threshold {policy.threshold:g} skips none of {steps} steps")
    elif plan == flat_plan:
        why = f"with at most {policy.max_skip} skips the plan is the same where all ratios are 1"
        yield Fault("warning", "ratios", f"{why}; raise the limit, or use `uniform`")
    if steps != len(policy.ratios):
        why = f"{len(policy.ratios)} ratios for {steps} steps: ratios depend on the number of steps"
        yield Fault("warning", "extrapolates", why)


def lint_plan(policy: Policy, profile: Profile) -> Iterator[Fault]:
    """Yields what a policy does on a profile: nothing, everything, or other things nearby."""
    calls, n = count_calls(policy, profile), profile.steps
    if calls == n:
        yield Fault("error", "inert", f"it computes all {n} steps of this profile")
    elif calls <= 2 < n:
        yield Fault("warning", "always", f"it computes {calls:g} of the {n} steps of this profile")
    for threshold, before, after in find_cliffs(policy, profile, near=0.1):
        change = f"near the threshold {threshold:.4g} the calls go from {before} to {after} of {n}"
        yield Fault("warning", "cliff", change)


def find_cliffs(
    policy: Policy, profile: Profile, near: float | None = None, jump: int = 3
) -> list[tuple[float, int, int]]:
    """Returns the thresholds at which a policy's plan changes much, with the calls before and after.

    Arguments:
        policy: A policy with a threshold; others have no cliffs.
        profile: What it is replayed on, with its first prompt.
        near: Look within this fraction of the policy's own threshold; None looks far.
        jump: How many calls are much; 1 lists every change.
    """
    own = getattr(policy, "threshold", None)
    if not own:
        return []
    span = (own * (1 - near), own * (1 + near)) if near else (own / 100, own * 100)
    grid = np.geomspace(*span, 41 if near else 161).tolist()
    calls = [len(replay(policy.model_copy(update={"threshold": t}), profile)) for t in grid]
    pairs = itertools.pairwise(zip(grid, calls, strict=True))
    return [(b, before, after) for (_, before), (b, after) in pairs if abs(after - before) >= jump]
