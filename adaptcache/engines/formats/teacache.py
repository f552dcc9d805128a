"""TeaCache's polynomial, as the engines that have a TeaCache take it: TensorRT-LLM and ComfyUI-TeaCache have no other.

Such an engine takes no mask. But a constant polynomial adds the same distance at every step, whatever the
input, so that the threshold is crossed every n steps.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import yaml

from ...errors import ScheduleError
from ...limits import STEPS
from ...policies.polynomial import Polynomial
from ...policies.uniform import Uniform
from ...schedule.schedule import Schedule
from .mask import Exported, Format, ReusePlan, ReusePlanner, Settings, reuse

COUNT = 5  # of a polynomial of degree 4: engines take no other
FITTED_ON = ("the model that the polynomial was fitted on",)
PATCHED = "convenience: its table is source code and has to be patched"
NOT_SINCE = "a ComfyUI that it works with: on 0.8.0 it is not imported"


def constant(interval: int, threshold: float) -> list[float]:
    """Returns the coefficients, highest order first, that cross a threshold every `interval` steps."""
    return [0.0, 0.0, 0.0, 0.0, threshold / (interval - 0.5)]  # half a step: sums are not exact


def read_polynomial(coefficients: Sequence[float], threshold: float | None, last: bool = False) -> Settings:
    """Returns the settings of a TeaCache: every n-th step where its polynomial is constant.

    Coefficients go from the highest order down; with `last` the engine always computes the last step.
    """
    if threshold is None:
        raise ScheduleError("coefficients without a threshold: add 'rel_l1_thresh'")
    policy = Polynomial(coefficients=tuple(coefficients), threshold=threshold, on="modulated")
    *others, each = policy.coefficients
    if any(others):
        return reuse(policy, "blocks")
    interval = min(max(1, math.ceil(policy.threshold / each)), STEPS) if each > 0 else STEPS
    return reuse(Uniform(interval=interval, cool_down=int(last)))


def write_with(form: Format, schedule: Schedule) -> Exported:
    """Returns the coefficients and the threshold of a schedule that decides by a polynomial, for an engine.

    Raises:
        ScheduleError: The polynomial is not one of the first block's modulated input, or has too many terms.
    """
    policy = schedule.rules[0].policy
    assert isinstance(policy, Polynomial) and form.write_polynomial
    if policy.on != "modulated":
        raise ScheduleError(
            f"the polynomial of {schedule.name} looks at the {policy.on}, that of {form.name} at the first "
            "block's modulated input: export one that was fitted on that, or a schedule with a plan"
        )
    if len(policy.coefficients) > COUNT:
        raise ScheduleError(f"{form.name} takes {COUNT} coefficients, {schedule.name} has {len(policy.coefficients)}")
    lost = ["how it was warmed up and limited: engines have their own rules for the first and last steps"]
    if policy.clamp:
        low, high = policy.clamp
        lost.append(f"the range of the fit ({low:.3g} to {high:.3g}): engines go on outside")
    missing = COUNT - len(policy.coefficients)
    written = form.write_polynomial(policy, [0.0] * missing + list(policy.coefficients))
    return replace(written, lost=(*lost, *written.lost))


# TensorRT-LLM: the YAML of `cache_config`.

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
        f"any number of steps: 1 in {interval} is computed, and the last",
        "a model of one transformer: the two of Wan 2.2 count their steps each by itself",
    )
    return form(THRESHOLD, constant(interval, THRESHOLD), plan, expects)


def write_polynomial(policy: Polynomial, coefficients: list[float]) -> Exported:
    return form(policy.threshold, coefficients, None, FITTED_ON)


def form(threshold: float, coefficients: list[float], plan: ReusePlan | None, expects: tuple[str, ...]) -> Exported:
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


TENSORRT_LLM = Format(
    "tensorrt-llm", "of 2026-11 (aaedbf9)", read, write, write_polynomial,
    models=("FluxTransformer2DModel", "Flux2Transformer2DModel", "WanTransformer3DModel",
            "LTX2VideoTransformer3DModel", "QwenImageTransformer2DModel"),
    keys=("coefficients", "teacache_thresh", "cache_backend"),
)  # fmt: skip


# ComfyUI-TeaCache: an entry of its table of coefficients.

NODE_THRESHOLD = 0.4  # the node's default
NODE_USE = """\
# Paste the line of {path} into nodes.py of ComfyUI-TeaCache, in place of your model's entry, restart, and
# set the node to: rel_l1_thresh %s, start_percent 0, end_percent 1.
"""


def write_node(planner: ReusePlanner) -> Exported:
    interval, plan = planner.every_nth(last=False)
    expects = (f"any number of steps: 1 in {interval} is computed", NOT_SINCE)
    text = f'"flux": {constant(interval, NODE_THRESHOLD)},\n'
    return Exported(".txt", text, NODE_USE % NODE_THRESHOLD, plan, expects, (PATCHED,))


def write_node_polynomial(policy: Polynomial, coefficients: list[float]) -> Exported:
    use = NODE_USE % policy.threshold
    return Exported(".txt", f'"flux": {coefficients},\n', use, None, (*FITTED_ON, NOT_SINCE), (PATCHED,))


def read_node(data: Any, steps: int | None) -> Settings:
    return read_polynomial(data["tea_table"], NODE_THRESHOLD)


COMFYUI_TEACACHE = Format(
    "comfyui-teacache", "of 2025-07 (91dff8e)", read_node, write_node, write_node_polynomial, keys=("tea_table",)
)  # fmt: skip
