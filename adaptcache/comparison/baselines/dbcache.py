"""cache-dit: DBCache, with its forecasts (TaylorSeer, FoCa, DMD), and by a fixed mask of steps."""

import itertools
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from ...engines.formats.cache_dit import left_as_found
from .base import Baseline, Case, Params, Ready, even_steps, product_of

THRESHOLDS = (0.03, 0.08, 0.2, 0.5, 1.2)
WARMUPS = (1, 3)


@dataclass(frozen=True)
class DBCache(Baseline):
    """Dual-block cache, https://github.com/vipshop/cache-dit

    Arguments:
        name: What tells it apart.
        forecast: What cache-dit calls a calibrator; empty reuses. "dmd" forecasts after four evenly spaced computed
            steps, before by Taylor.
    """

    name: str = "DBCache"  # type: ignore[misc]
    forecast: str = ""

    about = "cache-dit; decides for each prompt"
    package = "cache-dit"
    per_prompt = probes = True
    threshold = "residual_diff_threshold"

    def propose(self, case: Case) -> list[Params]:
        forecasts = {"taylorseer_order": (1,)} if self.forecast == "taylorseer" else {}
        return product_of(residual_diff_threshold=THRESHOLDS, max_warmup_steps=WARMUPS, **forecasts)

    @contextmanager
    def apply(self, case: Case, params: Params) -> Iterator[Ready]:
        import cache_dit

        for name in list(logging.root.manager.loggerDict):
            if name.lower().startswith("cache_dit"):
                logging.getLogger(name).setLevel(logging.ERROR)  # it logs every block it hooks
        own = dict(params)
        order = own.pop("taylorseer_order", 0)
        calibrator = build_forecast("taylorseer" if order else self.forecast, order)
        config = cache_dit.DBCacheConfig(
            Fn_compute_blocks=1, Bn_compute_blocks=0, num_inference_steps=case.steps,
            enable_separate_cfg=case.branches > 1, **own,
        )  # fmt: skip
        with ExitStack() as undo:
            for denoiser in case.denoisers:
                undo.enter_context(left_as_found(denoiser))
            cache_dit.enable_cache(case.pipe, cache_config=config, calibrator_config=calibrator)
            undo.callback(cache_dit.disable_cache, case.pipe)
            yield Ready(case.setup.call)


def build_forecast(name: str, order: int) -> Any:
    """Returns the configuration of one of cache-dit's forecasts; None reuses."""
    import cache_dit

    match name:
        case "taylorseer":
            return cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=order)
        case "foca":
            return cache_dit.FoCaCalibratorConfig()
        case "dmd":
            return cache_dit.DMDCalibratorConfig()
    return None


@dataclass(frozen=True)
class StaticMask(DBCache):
    """DBCache by a mask: evenly spaced steps, and the steps our plan computes."""

    name: str = "static mask"  # type: ignore[misc]

    about = "cache-dit, fixed steps"
    per_prompt = False
    threshold = ""

    def propose(self, case: Case) -> list[Params]:
        fewer = sorted({max(1, calls - less) for calls in case.calls for less in (0, 1, 2, 3)})
        plans = [even_steps(case.steps, calls) for calls in fewer] + list(map(list, case.plans.values()))
        masks = [[int(i in plan) for i in range(case.steps)] for plan in plans]
        return [
            {"steps_computation_mask": mask, "steps_computation_policy": "static", "max_warmup_steps": 0}
            | ({"taylorseer_order": order} if order else {})
            for mask, order in itertools.product(masks, (0, 1))
        ]


DBCACHES = (
    DBCache(),
    DBCache("DBCache + TaylorSeer", "taylorseer"),
    DBCache("DBCache + FoCa", "foca"),  # https://arxiv.org/abs/2508.16211
    DBCache("DBCache + DMD", "dmd"),
    StaticMask(),
)
