"""vLLM-Omni: the mask as magnitude ratios, or TeaCache's polynomial, in the JSON of `--cache-config`."""

import json
from typing import Any

from ...errors import ScheduleError
from ...policies.magnitude import Magnitude
from ...policies.polynomial import Polynomial
from .diffusers import ONE_GRID, THRESHOLD
from .mask import Exported, Format, ReusePlanner, Settings, check_steps, reuse
from .teacache import FITTED_ON, read_polynomial

VERSION = "0.30.0"
USE = '--cache-backend %s --cache-config "$(cat {path})"\n'


def write(planner: ReusePlanner) -> Exported:
    call = planner.schedule.made.get("call") or {}
    if call.get("true_cfg_scale", 1) != 1 or any(name.startswith("negative_prompt") for name in call):
        raise ScheduleError(
            f"{planner.schedule.name} was fitted with a negative prompt: the MagCache of vLLM-Omni {VERSION} "
            "has one state for both branches, in which every call is a step, and would not follow the plan"
        )
    plan = planner.best()
    config = {
        "mag_threshold": THRESHOLD,
        "mag_max_skip_steps": plan.steps,
        "mag_retention_ratio": 0.4 / plan.steps,  # 0 is refused; this rounds to no step
        "num_inference_steps": plan.steps,
        "mag_ratios": plan.ratios,
    }
    expects = (
        f"exactly {plan.steps} steps of FLUX.1 or FLUX.2, which its MagCache is written for",
        "no negative prompt: with true CFG both branches share one state, and the mask goes on at every call",
    )
    text, use = json.dumps(config) + "\n", USE % "mag_cache"
    return Exported(".json", text, use, plan, expects, (ONE_GRID,))


def write_polynomial(policy: Polynomial, coefficients: list[float]) -> Exported:
    text = json.dumps({"rel_l1_thresh": policy.threshold, "coefficients": coefficients}) + "\n"
    return Exported(".json", text, USE % "tea_cache", None, FITTED_ON)


def read(data: Any, steps: int | None) -> Settings:
    if "coefficients" in data:
        return read_polynomial(data["coefficients"], data.get("rel_l1_thresh", data.get("threshold")))
    n = check_steps(data.get("num_inference_steps") or 28)
    policy = Magnitude(
        ratios=(*data["mag_ratios"], *([1.0] * n))[:n],  # it moves none to another number of steps
        threshold=data.get("mag_threshold", 0.24),
        max_skip=data.get("mag_max_skip_steps", 5),
        retention=data.get("mag_retention_ratio", 0.1),
    )
    return reuse(policy, "blocks", n)


FORMAT = Format(
    "vllm-omni", VERSION, read, write, write_polynomial,
    models=("FluxTransformer2DModel", "Flux2Transformer2DModel"),
    keys=("mag_ratios", "mag_threshold", "mag_max_skip_steps", "mag_retention_ratio", "coefficients",
          "rel_l1_thresh"),
)  # fmt: skip
