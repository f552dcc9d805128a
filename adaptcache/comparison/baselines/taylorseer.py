"""diffusers' TaylorSeer: a Taylor series of attention outputs, or (lite) of the last projection."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

from ...engines.diffusers.watch import denoisers_of
from .base import Case, Knobs, Peer, Ready
from .magcache import cached

__all__ = ["TaylorSeer", "TaylorSeerLite"]

INTERVALS = (2, 3, 4, 5, 6, 7, 8, 9, 10)
BEFORE = (1, 2, 3, 4, 5)
ORDERS = (1, 2, 3)
NEAR = 2  # plans tried for each budget, each with all orders


class TaylorSeer(Peer):
    """Forecasts the output of every attention; the feed-forward networks run at every step.

    References:
        Liu et al., 2025, https://arxiv.org/abs/2503.06923
    """

    name = "TaylorSeer"
    about = "diffusers, attention outputs"
    lite: ClassVar[bool] = False

    def missing(self, case: Case) -> str | None:
        if not hasattr(denoisers_of(case.pipe)[0], "enable_cache"):
            return "this denoiser has no enable_cache"
        return None

    def settings(self, case: Case) -> list[Knobs]:
        plans: dict[tuple[int, ...], tuple[int, int]] = {}
        for interval, before in itertools.product(INTERVALS, BEFORE):
            plans.setdefault(computed(case.call.steps, interval, before), (interval, before))
        chosen: dict[tuple[int, int], None] = {}
        for calls in case.calls:
            below = sorted((plan for plan in plans if len(plan) <= calls), key=len, reverse=True)
            chosen |= dict.fromkeys(plans[plan] for plan in below[:NEAR])
        return [
            {"cache_interval": interval, "disable_cache_before_step": before, "max_order": order}
            for (interval, before), order in itertools.product(chosen, ORDERS)
        ]

    @contextmanager
    def applied(self, case: Case, knobs: Knobs) -> Iterator[Ready]:
        from diffusers import TaylorSeerCacheConfig

        dtype = next(denoisers_of(case.pipe)[0].parameters()).dtype  # its default rounds to bfloat16
        config = TaylorSeerCacheConfig(**knobs, use_lite_mode=self.lite, taylor_factors_dtype=dtype)
        with cached(case.pipe, config):
            yield Ready(case.call)


class TaylorSeerLite(TaylorSeer):
    """Forecasts the output of the last projection and skips all blocks."""

    name = "TaylorSeer lite"
    about = "diffusers, the output of the denoiser"
    lite = True


def computed(steps: int, interval: int, before: int) -> tuple[int, ...]:
    """Returns the numbers of the steps it computes: all before `before`, then from `before + 1` on."""
    return tuple(i for i in range(steps) if i < before or (i - before - 1) % interval == 0)
