"""What a trial is worth, and when it is given up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from .candidate import Candidate
    from .target import Target

__all__ = ["Seen", "behind", "best", "chosen", "gain", "hopeless", "worth"]

WORSE = 1.25  # times the error of the final latents of the best by now: 1 dB
SURE = 0.1  # p-value of the paired test that ends a trial
SURELY = 2.0  # standard errors by which a trial has to be better than what calibration returns


@dataclass(frozen=True)
class Seen:
    """A finished trial.

    Arguments:
        slot: Its place in the search.
        candidate: What it tried.
        worth: What it was found to be worth, higher is better; None where it was pruned.
        psnr: Decibels by select prompt, as far as they were measured.
        error: Of the final latents, where weights were matched.
    """

    slot: int
    candidate: Candidate
    worth: float | None
    psnr: tuple[float, ...] = ()
    error: float | None = None


def worth(psnr: Sequence[float], target: Target) -> float:
    """Returns decibels, more is better: the mean; for a quality target what few prompts fall below."""
    mean = float(np.mean(psnr))
    if target.min_psnr is None:
        return mean
    # By the normal tail: a 5th percentile of a handful of prompts is the worst of them.
    return mean - NormalDist().inv_cdf(1 - target.at_most) * float(np.std(psnr))


def best(seen: Sequence[Seen], calls: int) -> Seen | None:
    """Returns the best of the finished trials with so many calls; the first of equals."""
    known = [one for one in seen if one.candidate.calls == calls and one.worth is not None]
    return min(known, key=lambda one: (-(one.worth or 0.0), one.slot), default=None)


def hopeless(error: float | None, seen: Sequence[Seen], calls: int) -> str:
    """Says why final latents are too far off for images to be worth looking at; empty where they are not."""
    known = [one.error for one in seen if one.error is not None and one.candidate.calls == calls]
    if error is None or not known or error <= WORSE * min(known):
        return ""
    return f"its final latents are {error / min(known):.1f} times as wrong as the best"


def behind(psnr: Sequence[float], leader: Sequence[float]) -> bool:
    """Whether prompts so far say that a trial is worse than the best, prompt by prompt (Wilcoxon)."""
    from scipy.stats import wilcoxon

    differences = np.array(psnr) - np.array(leader[: len(psnr)])
    if differences.mean() >= 0 or not differences.any():
        return False
    return bool(wilcoxon(differences, alternative="less").pvalue < SURE)


def gain(psnr: Sequence[float], over: Sequence[float]) -> tuple[float, float]:
    """Returns the mean difference of decibels over prompts, and its standard error."""
    differences = np.array(psnr) - np.array(over)
    error = float(np.std(differences, ddof=1) / len(differences) ** 0.5) if len(differences) > 1 else 0.0
    return float(differences.mean()), error


def chosen(winner: Seen, calibrated: Seen) -> Seen:
    """Returns the winner, if it beats what calibration would return by more than two standard errors.

    The best of many noisy values was lucky too; without this, luck would be chosen over a good plan.
    """
    mean, error = gain(winner.psnr, calibrated.psnr)
    return winner if mean > SURELY * error else calibrated
