"""Plays MagCache, whose decisions depend on its settings alone.

References:
    MagCache (Ma et al., 2025), https://arxiv.org/abs/2506.09045
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["magcache"]


def magcache(
    ratios: Sequence[float], steps: int, threshold: float, longest: int, first: int, strict: bool = False
) -> list[int]:
    """Returns 1 for each step that MagCache computes, 0 for each it skips.

    Arguments:
        ratios: The magnitude of each step's residual over that of the step before.
        steps: How many steps N a run has; the ratios of another number are taken at the nearest ones.
        threshold: The largest sum of errors at which is skipped.
        longest: The most steps in a row that are skipped.
        first: How many steps are computed at the start.
        strict: Whether an error that equals the threshold is too large.
    """
    if len(ratios) != steps:
        scale = (len(ratios) - 1) / max(1, steps - 1)
        ratios = [ratios[round(i * scale)] for i in range(steps)]
    mask, product, error, skipped = [], 1.0, 0.0, 0
    for i in range(steps):
        if i >= first:
            product *= ratios[i]
            skipped += 1
            error += abs(1 - product)
            small = error < threshold if strict else error <= threshold
            if small and skipped <= longest and i > 0:
                mask.append(0)
                continue
            product, error, skipped = 1.0, 0.0, 0
        mask.append(1)
    return mask
