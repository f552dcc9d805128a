"""LightX2V: the mask as magnitude ratios, or TeaCache's polynomial, in the JSON of `--config_json`."""

import json
from typing import Any

from ...policies.magnitude import Magnitude
from ...policies.polynomial import Polynomial
from .diffusers import ONE_GRID, THRESHOLD
from .mask import Exported, Format, ReusePlanner, Settings, check_steps, played_steps, reuse, reuse_by_mask
from .teacache import FITTED_ON, read_polynomial

VERSION = "of 2026-08 (f8aee98)"
USE = "# merge the keys of {path} into the model's configuration, then: --config_json <that>\n"


def write(planner: ReusePlanner) -> Exported:
    plan = planner.best()
    config = {
        "infer_steps": plan.steps,
        "feature_caching": "Mag",
        "magcache_calibration": False,
        "magcache_K": plan.steps,
        "magcache_thresh": THRESHOLD,
        "magcache_retention_ratio": 0.0,
        "magcache_ratios": [plan.ratios, plan.ratios],  # with and without the prompt: guidance needs both
    }
    expects = (f"infer_steps {plan.steps}", 'Wan, HunyuanVideo 1.5 or WorldPlay: no other model has "Mag"')
    return Exported(".json", json.dumps(config) + "\n", USE, plan, expects, (ONE_GRID,))


def write_polynomial(policy: Polynomial, coefficients: list[float]) -> Exported:
    config = {
        "feature_caching": "Tea",
        "coefficients": [coefficients, coefficients],  # with and without `use_ret_steps`
        "use_ret_steps": False,
        "teacache_thresh": policy.threshold,
    }
    return Exported(".json", json.dumps(config) + "\n", USE, None, FITTED_ON)


def read(data: Any, steps: int | None) -> Settings:
    """Reads the keys of a TeaCache, or of a MagCache: where branches differ, a step is computed if one is."""
    if "coefficients" in data:
        coefficients = data["coefficients"][0 if data.get("use_ret_steps") else 1]
        return read_polynomial(coefficients, data.get("teacache_thresh"), last=True)
    n = check_steps(data["infer_steps"])
    cond, uncond = (
        Magnitude(
            ratios=tuple(ratios),
            threshold=data.get("magcache_thresh", 0.2),
            max_skip=data.get("magcache_K", 6),
            retention=data.get("magcache_retention_ratio", 0.2),
            rounded=False,
            strict=True,
        )
        for ratios in data["magcache_ratios"]
    )
    plans = [played_steps(reuse(branch).rule, n) for branch in (cond, uncond)]
    if plans[0] == plans[1]:
        return reuse(cond, "blocks", n)
    return reuse_by_mask([int(any(step in plan for plan in plans)) for step in range(n)])


FORMAT = Format(
    "lightx2v", VERSION, read, write, write_polynomial,
    keys=("magcache_ratios", "feature_caching", "coefficients", "teacache_thresh", "use_ret_steps"),
    models=("WanTransformer3DModel", "HunyuanVideo15Transformer3DModel"),
)  # fmt: skip
