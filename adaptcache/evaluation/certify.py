"""Says how sure a quality target is: Learn-then-Test with exact binomial bounds.

A target is "at most 5 % of prompts fall below 35 dB, with 95 % confidence". Settings are tested in an order
that is fixed before the held-out prompts are looked at, from the slowest to the fastest, and the first one
that fails ends the tests. So the last one that passed is chosen at no price in confidence: a setting that
misses the target passes in at most one of twenty draws of the prompts, however many are in the line.

References:
    | Learn then Test (Angelopoulos et al., 2021), https://arxiv.org/abs/2110.01052
    | Clopper and Pearson, 1934, https://doi.org/10.1093/biomet/26.4.404
"""

import functools
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import beta

from ..schedule.format import Certificate


@dataclass(frozen=True)
class QualityTarget:
    """What is to be shown: at most a share of prompts falls below a target."""

    target: float  # decibels (PSNR against the full run with the same noise) that a prompt should reach
    max_failure_rate: float = 0.05  # the share of prompts that may stay below it
    confidence: float = 0.95  # how sure the statement has to be

    def __post_init__(self) -> None:
        if not math.isfinite(self.target):
            raise ValueError(f"the target must be a number of decibels, got {self.target}; say 35")
        for name, value, say in (
            ("max_failure_rate", self.max_failure_rate, 0.05),
            ("confidence", self.confidence, 0.95),
        ):
            if not 0 < value < 1:
                raise ValueError(f"{name} must be a share between 0 and 1, got {value:g}; say {say}")

    def check_enough(self, prompts: int, groups: Sequence[Hashable] = ()) -> None:
        """Raises where so many held-out prompts, or their subjects, could not show it even without a failure."""
        count, what = (len(set(groups)), "subjects") if groups else (prompts, "prompts")
        if count < (need := prompts_needed(self.max_failure_rate, self.confidence)):
            claim = f"with {100 * self.confidence:g} % confidence that at most {100 * self.max_failure_rate:g} % fail"
            raise ValueError(
                f"{count} held-out {what} cannot show {claim}: {need} are the least; give more, or allow "
                "a larger share (--max-failure-rate)"
            )


def refuse_unaimed(max_failure_rate: float, confidence: float) -> None:
    """Raises where a share or a confidence is given, and no target that it could be of."""
    for name, value in (("max_failure_rate", max_failure_rate), ("confidence", confidence)):
        if value != getattr(QualityTarget, name):
            raise ValueError(
                f"{name} {value:g} goes with a target in decibels, and there is none: give min_psnr (--min-psnr) too"
            )


@functools.lru_cache(maxsize=4096)
def upper_bound(failures: int, n: int, confidence: float) -> float:
    """Returns the exact upper bound of a share (Clopper and Pearson), one-sided.

    The true share lies above it in at most 1 - confidence of all draws of n prompts.
    """
    if not 0 <= failures <= n or n < 1:
        raise ValueError(f"{failures} of {n} prompts cannot have failed")
    return 1.0 if failures == n else float(beta.ppf(confidence, failures + 1, n - failures))


def prompts_needed(max_failure_rate: float, confidence: float) -> int:
    """Returns the least number of prompts that can certify a share, where none of them fails."""
    # Rounded first: 1 - 0.95 is not 0.05 to the last bit, and the quotient may be a whole number.
    return math.ceil(round(math.log(1 - confidence) / math.log(1 - max_failure_rate), 9))


def certify(
    values: ArrayLike,
    target: QualityTarget,
    *,
    settings: Sequence[str] = (),
    prompts: str = "held-out prompts",
    groups: Sequence[Hashable] = (),
) -> Certificate:
    """Tests settings from the slowest to the fastest, and stops at the first that fails.

    Prompts of one subject are not independent: they fall below a target together. So a subject counts once, by the
    worst of its prompts.

    Arguments:
        values: Decibels by setting and prompt, with shape (S, P). The settings' order, slow to fast, must
            not come from these prompts, nor may anything have been fitted to them.
        target: What prompts should reach.
        settings: What the settings are called: S names.
        prompts: The name of the prompt set.
        groups: The subject of each prompt: P values; without them every prompt is a subject of its own.

    Raises:
        ValueError: The target cannot be tested, or values are missing or not numbers.
    """
    table = np.asarray(values, dtype=float)
    if table.ndim != 2 or 0 in table.shape:
        raise ValueError(f"needs values with shape (settings, prompts), got {table.shape}")
    if np.isnan(table).any():
        raise ValueError("some of the values are not numbers: leave those prompts out, in all settings")
    names = list(settings) or [f"setting {k}" for k in range(len(table))]
    if len(names) != len(table):
        raise ValueError(f"{len(names)} names for {len(table)} settings: give one each")
    unit = None
    if groups:
        if len(groups) != table.shape[1]:
            raise ValueError(f"{len(groups)} groups for {table.shape[1]} prompts: give each prompt one")
        subjects = list(dict.fromkeys(groups))
        worst = [table[:, [group == one for group in groups]].min(axis=1) for one in subjects]
        table, unit = np.stack(worst, axis=1), "subjects"
    failures, n = (table < target.target).sum(axis=1).tolist(), table.shape[1]
    bounds = [upper_bound(count, n, target.confidence) for count in failures]
    passed = next((k for k, bound in enumerate(bounds) if bound > target.max_failure_rate), len(table))
    shown = max(passed - 1, 0)
    return Certificate(
        target=target.target, max_failure_rate=target.max_failure_rate, confidence=target.confidence,
        prompts=prompts, n=n, unit=unit, certified=passed - 1 if passed else None,
        setting=names[shown], failures=failures[shown], upper=bounds[shown],
    )  # fmt: skip
