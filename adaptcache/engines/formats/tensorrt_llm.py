"""TensorRT-LLM: every n-th step, as a TeaCache whose polynomial is constant, or a polynomial as it is."""

from typing import Any

import yaml

from ...errors import ScheduleError
from ...policies.polynomial import Polynomial
from .mask import Exported, Format, ReusePlan, ReusePlanner, Settings
from .teacache import FITTED_ON, constant, read_polynomial

VERSION = "of 2026-11 (aaedbf9)"
THRESHOLD = 0.2


def write(planner: ReusePlanner) -> Exported:
    name, parts = planner.schedule.denoiser.class_name, planner.schedule.made.get("components") or {}
    if sum(part.get("class") == name for part in parts.values()) > 1:
        raise ScheduleError(
            f"{planner.schedule.name} was fitted to several denoisers: the TeaCache of TensorRT-LLM counts the steps "
            "of each by itself, and would not compute what is planned"
        )
    interval, plan = planner.every_nth(last=True)
    expects = (
        f"any number of steps: every {interval}th, and the last, are computed",
        "a model of one transformer: the two of Wan 2.2 count their steps each by itself",
    )
    return form(THRESHOLD, constant(interval, THRESHOLD), plan, expects)


def write_polynomial(policy: Polynomial, coefficients: list[float]) -> Exported:
    return form(policy.threshold, coefficients, None, FITTED_ON)


def form(threshold: float, coefficients: list[float], plan: ReusePlan | None, expects: tuple[str, ...]) -> Exported:
    """Returns the YAML of `cache_config`."""
    config = {
        "cache_backend": "teacache",
        "teacache_thresh": threshold,
        "use_ret_steps": False,
        "coefficients": coefficients,
    }
    text = yaml.safe_dump({"cache_config": config}, default_flow_style=None, sort_keys=False)
    return Exported(".yaml", text, "# cache_config of VisualGenArgs: merge {path} into its YAML\n", plan, expects)


def read(data: Any, steps: int | None) -> Settings:
    return read_polynomial(data["coefficients"], data.get("teacache_thresh", data.get("threshold")), last=True)


FORMAT = Format(
    "tensorrt-llm", VERSION, read, write, write_polynomial,
    models=("FluxTransformer2DModel", "Flux2Transformer2DModel", "WanTransformer3DModel",
            "LTX2VideoTransformer3DModel", "QwenImageTransformer2DModel"),
    keys=("coefficients", "teacache_thresh", "cache_backend"),
)  # fmt: skip
