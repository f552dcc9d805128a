"""Reads what other codes keep: TeaCache coefficients, MagCache ratios, masks of steps."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import ScheduleError
from ...forecasts.extrapolate import Extrapolate
from ...policies.magnitude import Magnitude
from ...policies.mask import Mask
from ...policies.polynomial import Polynomial
from ...schedule.rule import Rule
from ...schedule.schedule import Schedule
from .read import read as parsed

__all__ = ["imported", "interleaved", "read"]

BINS = ("scm_compute_bins", "compute_bins"), ("scm_cache_bins", "cache_bins")


def read(path: str | Path) -> Schedule:
    """Returns the schedule in a file: one of ours, or what one of another code means."""
    try:
        ours = "rules" in json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        ours = not Path(path).is_file()  # then `load` says why
    return Schedule.load(path) if ours else imported(path)


def imported(path: str | Path) -> Schedule:
    """Returns the schedule that a file of another code means.

    Understood are, in JSON, YAML or as Python prints it: `coefficients` with `rel_l1_thresh` or
    `teacache_thresh` (vLLM-Omni, TensorRT-LLM, LightX2V), `mag_ratios` (diffusers, vLLM-Omni),
    `magcache_ratios` (LightX2V), `steps_computation_mask` (cache-dit, xDiT), `scm_compute_bins` (SGLang),
    `cache_step` (BudCache), lists by component (SmoothCache: a step is computed where any is), a plain list
    of ones and zeros, the flags of stable-diffusion.cpp, and entries of the tables of ComfyUI-TeaCache and
    ComfyUI-MagCache, at the settings of the nodes that `adaptcache export` asks for.

    Raises:
        ScheduleError: Nothing of this is in the file.
    """
    data = parsed(path)
    try:
        rule = _rule(data if isinstance(data, Mapping) else {"list": data})
    except (TypeError, ValueError) as error:
        raise ScheduleError(f"{path}: {error}") from None
    return Schedule(name=Path(path).stem, rules=(rule,), made={"imported": Path(path).name})


def _rule(data: Mapping[str, Any]) -> Rule:
    data = {**data, **data.get("cache_config", {})}
    if table := data.get("tea_table"):
        data = {"coefficients": table, "threshold": 0.4}
    if table := data.get("mag_table"):
        limits = {"threshold": 0.3, "max_skip": 6, "retention": 0.1, "rounded": False}
        return _reuse(Magnitude(ratios=tuple(map(float, table)), **limits), site="blocks")
    if "coefficients" in data:
        values = data["coefficients"]
        values = values[-1] if isinstance(values[0], Sequence) else values  # LightX2V: with and without `ret`
        threshold = next(
            (data[k] for k in ("rel_l1_thresh", "teacache_thresh", "threshold") if k in data), None
        )
        if threshold is None:
            raise ValueError("coefficients without a threshold: add 'rel_l1_thresh'")
        policy = Polynomial(coefficients=tuple(values), threshold=threshold, on="modulated")
        return _reuse(policy, site="blocks")
    for key, name in (("mag_ratios", "mag"), ("magcache_ratios", "magcache")):
        if data.get(key):
            return _reuse(_magnitude(data, data[key], name), site="blocks")
    if mask := _mask(data):
        return _reuse(Mask(compute_steps=tuple(map(bool, mask))), site="step")
    raise ValueError("no coefficients, ratios or mask in it")


def _reuse(policy: Any, site: Any) -> Rule:
    return Rule(site=site, policy=policy, forecast=Extrapolate(order=0))


def _magnitude(data: Mapping[str, Any], ratios: Any, name: str) -> Magnitude:
    """Returns the policy of a configuration; keys are those of diffusers or have a prefix."""
    values = ratios[0] if isinstance(ratios[0], Sequence) else ratios  # LightX2V: one list a branch
    steps = data.get("num_inference_steps") or data.get("infer_steps") or len(values)
    values = interleaved(values) if len(values) == 2 * steps else list(values)
    names = {
        "threshold": ("thresh", "threshold"),
        "max_skip": ("K", "max_skip_steps"),
        "retention": ("retention_ratio",),
    }
    found = {
        field: data[key]
        for field, ends in names.items()
        for key in (*(f"{name}_{end}" for end in ends), *ends)
        if data.get(key) is not None
    }
    return Magnitude(ratios=tuple(map(float, values)), strict=name == "magcache", **found)


def interleaved(ratios: Sequence[float]) -> list[float]:
    """Returns the conditional branch of a list that has both branches in turn, as MagCache's for Wan."""
    return list(ratios[::2])


def _mask(data: Mapping[str, Any]) -> list[int]:
    compute, cache = (next((data[key] for key in keys if key in data), None) for keys in BINS)
    if compute is not None and cache is not None:
        return list(Mask.of_bins(compute, cache, data.get("num_inference_steps")).compute_steps)
    if "cache_step" in data:
        steps = data.get("num_inference_steps") or data.get("steps")
        if not steps:
            raise ValueError("'cache_step' without the number of steps: add 'num_inference_steps'")
        return [int(i not in set(data["cache_step"])) for i in range(steps)]
    names = ("steps_computation_mask", "steps_mask", "scm-mask", "list")
    values = next((data[name] for name in names if data.get(name)), None)
    if values is None and data and all(isinstance(value, list) for value in data.values()):
        values = [max(steps) for steps in zip(*data.values(), strict=True)]  # SmoothCache
    values = values or []
    if isinstance(values, str):
        raise ValueError(
            f"the mask is the name of a preset, {values!r}: Schedule.of('scm', model=...) has those"
        )
    if any(value not in (0, 1) for value in values):
        if any(not math.isfinite(value) or value <= 0 for value in values):
            raise ValueError("a list of neither ones and zeros nor positive ratios")
        raise ValueError("a list of ratios alone does not say how to use it: name it 'mag_ratios'")
    return list(values)
