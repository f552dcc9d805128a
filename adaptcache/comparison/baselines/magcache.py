"""diffusers' MagCache, calibrated by its own calibration on the calibration prompts."""

from __future__ import annotations

import ast
import contextlib
import io
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from ...engines.diffusers.watch import denoisers_of
from .base import Case, Knobs, Peer, Ready

__all__ = ["MagCache", "cached"]

THRESHOLDS = (0.02, 0.04, 0.06, 0.1, 0.15, 0.2, 0.3, 0.5, 0.8, 1.5, 3.0)
SKIPS = (1, 2, 3, 4, 6, 8)
RETENTIONS = (0.0, 0.1, 0.2)
NEAR = 3  # settings tried for each budget that differ in the steps they compute


class MagCache(Peer):
    """Skips all blocks while the product of magnitude ratios stays near 1.

    References:
        Ma et al., 2025, https://arxiv.org/abs/2506.09045
    """

    name = "MagCache"
    about = "diffusers, calibrated"

    def missing(self, case: Case) -> str | None:
        if not hasattr(denoisers_of(case.pipe)[0], "enable_cache"):
            return "this denoiser has no enable_cache"
        return None

    def settings(self, case: Case) -> list[Knobs]:
        """Follows its rule on paper for the whole grid, and keeps the masks nearest below each budget."""
        ratios = calibrated(case)
        masks: dict[tuple[int, ...], Knobs] = {}
        for threshold, most, retention in itertools.product(THRESHOLDS, SKIPS, RETENTIONS):
            mask = followed(ratios, threshold, most, retention)
            masks.setdefault(mask, {
                "threshold": threshold, "max_skip_steps": most, "retention_ratio": retention,
                "num_inference_steps": case.call.steps, "mag_ratios": ratios,
            })  # fmt: skip
        chosen: dict[tuple[int, ...], Knobs] = {}
        for calls in case.calls:
            below = sorted((mask for mask in masks if len(mask) <= calls), key=len, reverse=True)
            chosen |= {mask: masks[mask] for mask in below[:NEAR]}
        return list(chosen.values())

    @contextmanager
    def applied(self, case: Case, knobs: Knobs) -> Iterator[Ready]:
        from diffusers import MagCacheConfig

        with cached(case.pipe, MagCacheConfig(**knobs)):
            yield Ready(case.call)


@contextmanager
def cached(pipe: Any, config: Any) -> Iterator[None]:
    """Enables a cache of diffusers on all denoisers of a pipeline."""
    with contextlib.ExitStack() as undo:
        for denoiser in denoisers_of(pipe):
            denoiser.enable_cache(config)  # type: ignore[operator]
            undo.callback(denoiser.disable_cache)  # type: ignore[arg-type]
        yield


def calibrated(case: Case) -> list[float]:
    """Returns the mean magnitude ratios over the calibration prompts, with shape (N,)."""
    from diffusers import MagCacheConfig

    printed = io.StringIO()  # it prints the ratios for people to copy, and then forgets them
    config = MagCacheConfig(calibrate=True, num_inference_steps=case.call.steps)
    with cached(case.pipe, config), contextlib.redirect_stdout(printed):
        for number, prompt in enumerate(case.prompts):
            case.call(case.pipe, [prompt], number)
    rows = [ast.literal_eval(line) for line in printed.getvalue().splitlines() if line.startswith("[0") or
            line.startswith("[1")]  # fmt: skip
    return [float(value) for value in np.mean(rows, axis=0)]


def followed(ratios: Sequence[float], threshold: float, most: int, retention: float) -> tuple[int, ...]:
    """Returns the numbers of the steps that MagCache computes by these ratios."""
    steps, product, error, skipped = list[int](), 1.0, 0.0, 0
    for index, ratio in enumerate(ratios):
        if index >= int(retention * len(ratios) + 0.5):
            product, skipped = product * ratio, skipped + 1
            error += abs(1 - product)
            if index and error <= threshold and skipped <= most:
                continue
            product, error, skipped = 1.0, 0.0, 0
        steps.append(index)
    return tuple(steps)
