"""How often certificates are false where prompts vary a subject, counted by prompts and by subjects.

    python -m benchmarks.certificates --draws 2000

Decibels of a prompt are those of its subject and of its own; variants of one subject are correlated .85. A schedule
is drawn that misses the target by as little as can be: the share of prompts below it (of subjects, by the worst of
their prompts, where these count) is just above the promised 5 %. A certificate of it is false.
"""

from __future__ import annotations

import argparse

import numpy as np
from scipy.stats import norm

from adaptcache.evaluation.certify import QualityTarget, certify

CORRELATION, SHARE, CONFIDENCE = 0.85, 0.05, 0.95
VARIANTS = (1, 2, 5, 10)
SUBJECTS = 60
MEAN, SPREAD = 40.0, 3.0  # decibels


def draw(subjects: int, variants: int, draws: int, seed: int = 0) -> np.ndarray:
    """Returns standard normal values, correlated within a subject, with shape (draws, subjects, variants)."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(draws, subjects, 1))
    own = rng.normal(size=(draws, subjects, variants))
    return np.asarray(np.sqrt(CORRELATION) * shared + np.sqrt(1 - CORRELATION) * own)


def target_of(variants: int, grouped: bool) -> float:
    """Returns the decibels that just more than the promised share of prompts, or of subjects, falls below."""
    share = SHARE * 1.0001
    if not grouped:
        return MEAN + SPREAD * float(norm.ppf(share))
    worst = draw(1, variants, 2_000_000, seed=1).min(axis=2)
    return MEAN + SPREAD * float(np.quantile(worst, share))


def false_share(variants: int, grouped: bool, draws: int = 2000, subjects: int = SUBJECTS) -> float:
    """Returns the share of draws in which a schedule that misses the target is certified."""
    target = QualityTarget(target_of(variants, grouped), SHARE, CONFIDENCE)
    groups = [k // variants for k in range(subjects * variants)] if grouped else ()
    values = MEAN + SPREAD * draw(subjects, variants, draws).reshape(draws, -1)
    return float(np.mean([certify(row[None], target, groups=groups).certified is not None for row in values]))


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=2000)
    draws = parser.parse_args().draws
    print(f"false certificates at a promised {100 * (1 - CONFIDENCE):g} %, {SUBJECTS} subjects, {draws} draws")
    print(f"{'variants':>8} {'prompts':>8} {'prompts count':>14} {'subjects count':>15}")
    for variants in VARIANTS:
        plain, grouped = (false_share(variants, by, draws) for by in (False, True))
        print(f"{variants:8} {SUBJECTS * variants:8} {100 * plain:12.1f} % {100 * grouped:13.1f} %")


if __name__ == "__main__":
    main()
