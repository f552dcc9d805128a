"""cache-dit: DBCache, with TaylorSeer, and by a fixed mask of steps."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from .base import Case, Knobs, Peer, Ready

__all__ = ["DBCache", "DBCacheTaylor", "StaticMask"]

THRESHOLDS = (0.02, 0.04, 0.08, 0.14, 0.24, 0.4, 0.7, 1.2)
WARMUPS = (1, 3)


class DBCache(Peer):
    """Dual-block cache, https://github.com/vipshop/cache-dit"""

    name = "DBCache"
    about = "cache-dit; decides for each prompt"
    needs = "cache-dit"

    def settings(self, case: Case) -> list[Knobs]:
        return [
            {"residual_diff_threshold": threshold, "max_warmup_steps": warmup}
            for threshold, warmup in itertools.product(THRESHOLDS, WARMUPS)
        ]

    @contextmanager
    def applied(self, case: Case, knobs: Knobs) -> Iterator[Ready]:
        import cache_dit

        logging.getLogger("CACHE_DIT").setLevel(logging.ERROR)  # it tells of every block it hooks
        own = dict(knobs)
        order = own.pop("taylorseer_order", None)
        calibrator = cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=order) if order else None
        config = cache_dit.DBCacheConfig(
            Fn_compute_blocks=1, Bn_compute_blocks=0, num_inference_steps=case.call.steps, **own
        )
        cache_dit.enable_cache(case.pipe, cache_config=config, calibrator_config=calibrator)
        try:
            yield Ready(case.call)
        finally:
            cache_dit.disable_cache(case.pipe)


class DBCacheTaylor(DBCache):
    """DBCache that forecasts by a Taylor series instead of reusing."""

    name = "DBCache + TaylorSeer"
    about = "cache-dit; decides for each prompt"

    def settings(self, case: Case) -> list[Knobs]:
        return [{**knobs, "taylorseer_order": 1} for knobs in super().settings(case)]


class StaticMask(DBCache):
    """DBCache by a mask: evenly spaced steps, and the steps our plan computes."""

    name = "static mask"
    about = "cache-dit, fixed steps"

    def settings(self, case: Case) -> list[Knobs]:
        steps, plans = case.call.steps, list[list[int]]()
        for calls in sorted({max(1, calls - less) for calls in case.calls for less in (0, 1, 2, 3)}):
            plans.append(sorted({round(k * (steps - 1) / max(1, calls - 1)) for k in range(calls)}))
        plans += [list(plan) for plan in case.plans.values()]
        masks = [[int(i in plan) for i in range(steps)] for plan in plans]
        return [
            {"steps_computation_mask": mask, "steps_computation_policy": "static", "max_warmup_steps": 0}
            | ({"taylorseer_order": order} if order else {})
            for mask, order in itertools.product(masks, (0, 1))
        ]
