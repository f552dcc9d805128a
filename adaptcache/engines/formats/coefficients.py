"""TeaCache's polynomials in the engines that have a TeaCache."""

from __future__ import annotations

import json
from collections.abc import Callable

from ...errors import ScheduleError
from ...policies.polynomial import Polynomial
from ...schedule.schedule import Schedule
from .mask import Exported

__all__ = ["COEFFICIENTS", "teacache"]

COUNT = 5  # of a polynomial of degree 4: engines take no other

Form = tuple[str, str, str]  # ending, text, use


def _vllm_omni(policy: Polynomial, values: list[float]) -> Form:
    text = json.dumps({"rel_l1_thresh": policy.threshold, "coefficients": values}) + "\n"
    return ".json", text, '--cache-backend tea_cache --cache-config "$(cat {path})"\n'


def _lightx2v(policy: Polynomial, values: list[float]) -> Form:
    config = {
        "feature_caching": "Tea",
        "coefficients": [values, values],  # with and without `use_ret_steps`
        "use_ret_steps": False,
        "teacache_thresh": policy.threshold,
    }
    use = "# merge the keys of {path} into the model's configuration, then: --config_json <that>\n"
    return ".json", json.dumps(config) + "\n", use


def _tensorrt_llm(policy: Polynomial, values: list[float]) -> Form:
    text = (
        "cache_config:\n"
        "  cache_backend: teacache\n"
        f"  teacache_thresh: {policy.threshold}\n"
        "  use_ret_steps: false\n"
        f"  coefficients: {values}\n"
    )
    return ".yaml", text, "# cache_config of VisualGenArgs: merge {path} into its YAML\n"


def _comfyui(policy: Polynomial, values: list[float]) -> Form:
    use = (
        "# Paste the line of {path} into nodes.py of ComfyUI-TeaCache, in place of your model's entry,\n"
        f"# restart, and set the node to: rel_l1_thresh {policy.threshold}.\n"
    )
    return ".txt", f'"flux": {values},\n', use


COEFFICIENTS: dict[str, Callable[[Polynomial, list[float]], Form]] = {
    "vllm-omni": _vllm_omni,
    "lightx2v": _lightx2v,
    "tensorrt-llm": _tensorrt_llm,
    "comfyui-teacache": _comfyui,
}


def teacache(schedule: Schedule, to: str) -> Exported:
    """Returns the coefficients and the threshold of a schedule that decides by a polynomial.

    Raises:
        ScheduleError: The engine has no TeaCache, or one that looks at something else.
    """
    policy = schedule.rules[0].policy
    assert isinstance(policy, Polynomial)
    if to not in COEFFICIENTS:
        raise ScheduleError(
            f"{schedule.name} decides by a polynomial, which {to} does not know; "
            f"{', '.join(COEFFICIENTS)} do, or export a schedule with a plan"
        )
    if policy.on != "modulated":
        raise ScheduleError(
            f"the polynomial of {schedule.name} looks at the {policy.on}, that of {to} at the first block's "
            "modulated input: export one that was fitted on that, or a schedule with a plan"
        )
    if len(policy.coefficients) > COUNT:
        raise ScheduleError(
            f"{to} takes {COUNT} coefficients, {schedule.name} has {len(policy.coefficients)}"
        )
    values = [0.0] * (COUNT - len(policy.coefficients)) + list(policy.coefficients)
    ending, text, use = COEFFICIENTS[to](policy, values)
    lost = ["how it was warmed up and limited: engines have their own rules for the first and last steps"]
    if policy.clamp:
        lost.append(
            f"the range of the fit ({policy.clamp[0]:.3g} to {policy.clamp[1]:.3g}): engines go on outside"
        )
    return Exported(
        to, ending, text, use, None, tuple(lost), ("the model that the polynomial was fitted on",)
    )
