"""diffusers' MagCache, calibrated by its own calibration on the calibration prompts."""

import ast
import contextlib
import io
import itertools
from dataclasses import replace
from typing import Any

import numpy as np

from ...hooks import StepHook
from ...policies.magnitude import Magnitude
from .base import Case, DiffusersCache, Params, enable_cache, nearest_plans, planned_steps

THRESHOLDS = (0.02, 0.04, 0.06, 0.1, 0.15, 0.2, 0.3, 0.5, 0.8, 1.5, 3.0)
SKIPS = (1, 2, 3, 4, 6, 8)
RETENTIONS = (0.0, 0.1, 0.2)
NEAR = 3  # plans tried for each budget


class MagCache(DiffusersCache):
    """Skips all blocks while the product of magnitude ratios stays near 1.

    References:
        Ma et al., 2025, https://arxiv.org/abs/2506.09045
    """

    name = "MagCache"
    about = "diffusers, calibrated"

    def propose(self, case: Case) -> list[Params]:
        """Follows its rule for the whole grid without a run: plans nearest below each budget."""
        ratios = calibrate_ratios(case)
        plans: dict[tuple[int, ...], Params] = {}
        for threshold, most, retention in itertools.product(THRESHOLDS, SKIPS, RETENTIONS):
            params = {
                "threshold": threshold, "max_skip_steps": most, "retention_ratio": retention,
                "num_inference_steps": case.steps, "mag_ratios": ratios,
            }  # fmt: skip
            plans.setdefault(planned_steps(policy_of(params), case.steps), params)
        return nearest_plans(plans, case.calls, NEAR)

    def build_config(self, case: Case, params: Params) -> Any:
        from diffusers import MagCacheConfig

        return MagCacheConfig(**params)


def policy_of(params: Params) -> Magnitude:
    """Returns the policy that decides as diffusers' MagCache does with these parameters."""
    return Magnitude(
        ratios=tuple(params["mag_ratios"]), threshold=params["threshold"], max_skip=params["max_skip_steps"],
        retention=params["retention_ratio"],
    )  # fmt: skip


def calibrate_ratios(case: Case) -> list[float]:
    """Returns the mean magnitude ratios over the calibration prompts, with shape (N,)."""
    from diffusers import MagCacheConfig

    printed = io.StringIO()  # it prints the ratios for people to copy, and then forgets them
    config = MagCacheConfig(calibrate=True, num_inference_steps=case.steps)
    with enable_cache(case, config), contextlib.redirect_stdout(printed):
        for prompt in case.prompts.batches(1):
            replace(case.setup, batch_size=1).run(StepHook(), prompt)
    rows = [ast.literal_eval(line) for line in printed.getvalue().splitlines() if line[:2] in ("[0", "[1")]
    return [float(value) for value in np.mean(rows, axis=0)]
