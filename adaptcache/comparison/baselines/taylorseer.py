"""diffusers' TaylorSeer: a Taylor series of attention outputs, or (lite) of the last projection."""

import itertools
from typing import Any, ClassVar

from ...policies.uniform import Uniform
from .base import Case, DiffusersCache, Params, nearest_plans, planned_steps

INTERVALS = (2, 3, 4, 5, 6, 7, 8, 9, 10)
BEFORE = (1, 2, 3, 4, 5)
LAST = (0, 1, 2, 3, 5)  # steps at the end that are all computed, by `disable_cache_after_step`
ORDERS = (1, 2, 3)
NEAR = 2  # plans tried for each budget and end, each with all orders


class TaylorSeer(DiffusersCache):
    """Forecasts the output of every attention; the feed-forward networks run at every step.

    References:
        Liu et al., 2025, https://arxiv.org/abs/2503.06923
    """

    name = "TaylorSeer"
    about = "diffusers, attention outputs"
    lite: ClassVar[bool] = False

    def propose(self, case: Case) -> list[Params]:
        chosen: dict[tuple[int, ...], Params] = {}
        for last in LAST:
            plans: dict[tuple[int, ...], Params] = {}
            for interval, before in itertools.product(INTERVALS, BEFORE):
                params: Params = {"cache_interval": interval, "disable_cache_before_step": before}
                if last:
                    params = {**params, "disable_cache_after_step": case.steps - last}
                plans.setdefault(planned_steps(policy_of(params, case.steps), case.steps), params)
            for params in nearest_plans(plans, case.calls, NEAR):
                chosen.setdefault(planned_steps(policy_of(params, case.steps), case.steps), params)
        return [{**params, "max_order": order} for params in chosen.values() for order in ORDERS]

    def build_config(self, case: Case, params: Params) -> Any:
        from diffusers import TaylorSeerCacheConfig

        dtype = next(case.denoisers[0].parameters()).dtype  # its default rounds to bfloat16
        return TaylorSeerCacheConfig(**params, use_lite_mode=self.lite, taylor_factors_dtype=dtype)


class TaylorSeerLite(TaylorSeer):
    """Forecasts the output of the last projection and skips all blocks."""

    name = "TaylorSeer lite"
    about = "diffusers, the output of the denoiser"
    lite = True


def policy_of(params: Params, steps: int) -> Uniform:
    """Returns the policy that computes the steps that diffusers' TaylorSeer does."""
    after = params.get("disable_cache_after_step", steps)
    return Uniform(
        interval=params["cache_interval"], warm_up=params["disable_cache_before_step"], first_gap=2,
        cool_down=steps - after,
    )  # fmt: skip
