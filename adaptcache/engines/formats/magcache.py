"""Engines with a MagCache: any plan as its settings. Stock diffusers, vLLM-Omni, LightX2V and ComfyUI-MagCache.

A MagCache skips while the product of magnitude ratios stays near 1, so that `ReusePlan.ratios` let it follow a plan.
vLLM-Omni and LightX2V have a TeaCache too, which takes a polynomial.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ...errors import ScheduleError
from ...policies.magnitude import Magnitude
from ...policies.polynomial import Polynomial
from ..diffusers.components import denoisers_of
from .mask import Exported, Format, ReusePlan, ReusePlanner, Settings, check_steps, played_steps, reuse, reuse_by_mask
from .teacache import FITTED_ON, NOT_SINCE, PATCHED, read_polynomial

Words = Mapping[str, tuple[str, float]]  # by fields of `Magnitude`: what an engine calls them, and its defaults

THRESHOLD = 0.5  # between the errors of a skipped step, 0, and of a computed one, 1
ONE_GRID = "re-planning for other steps: the mask holds for one number of steps"


def settings(words: Words, plan: ReusePlan, retention: float = 0.0) -> dict[str, float]:
    """Returns the limits with which a MagCache follows the ratios of a plan."""
    limits = {"threshold": THRESHOLD, "max_skip": plan.steps, "retention": retention}
    return {name: limits[field] for field, (name, _) in words.items()}


def policy(words: Words, data: Any, ratios: Iterable[float], **more: Any) -> Magnitude:
    """Returns the policy that the settings of an engine are."""
    limits: Any = {field: data.get(name, default) for field, (name, default) in words.items()}
    return Magnitude(ratios=tuple(ratios), **limits, **more)


# Stock diffusers: inference needs no adaptcache.

DIFFUSERS_WORDS: Words = {
    "threshold": ("threshold", 0.06), "max_skip": ("max_skip_steps", 3), "retention": ("retention_ratio", 0.2),
}  # fmt: skip
DIFFUSERS_USE = """\
import json
from diffusers import MagCacheConfig

config = MagCacheConfig(**json.load(open("{path}")))
pipe.transformer.enable_cache(config)  # call disable_cache() first if a cache is on
"""


def write_diffusers(planner: ReusePlanner) -> Exported:
    plan = planner.best()
    more = {"num_inference_steps": plan.steps, "mag_ratios": plan.ratios}
    text = json.dumps(settings(DIFFUSERS_WORDS, plan) | more, indent=1) + "\n"
    expects = (
        f"exactly num_inference_steps={plan.steps}, all of them run (no image-to-image strength below 1)",
        "a transformer whose blocks diffusers knows (enable_cache says if not), and only one",
    )
    return Exported(".json", text, DIFFUSERS_USE, plan, expects, (ONE_GRID,))


def read_diffusers(data: Any, steps: int | None) -> Settings:
    own = policy(DIFFUSERS_WORDS, data, data["mag_ratios"])
    return reuse(own, "blocks", check_steps(data.get("num_inference_steps", 28)))


@contextmanager
def apply_diffusers(pipe: Any, exported: Exported) -> Iterator[None]:
    """Enables the cache, and disables it again."""
    from diffusers import MagCacheConfig

    denoiser: Any = denoisers_of(pipe)[0]
    denoiser.enable_cache(MagCacheConfig(**json.loads(exported.text)))
    try:
        yield
    finally:
        denoiser.disable_cache()


DIFFUSERS = Format(
    "diffusers", "0.42.1", read_diffusers, write_diffusers, apply=apply_diffusers,
    keys=("mag_ratios", "max_skip_steps", "retention_ratio"),
)  # fmt: skip


# vLLM-Omni: the JSON of `--cache-config`.

OMNI_VERSION = "0.30.0"
OMNI_WORDS: Words = {
    "threshold": ("mag_threshold", 0.24), "max_skip": ("mag_max_skip_steps", 5),
    "retention": ("mag_retention_ratio", 0.1),
}  # fmt: skip
OMNI_USE = '--cache-backend %s --cache-config "$(cat {path})"\n'


def write_omni(planner: ReusePlanner) -> Exported:
    call = planner.schedule.made.get("call") or {}
    if call.get("true_cfg_scale", 1) != 1 or any(name.startswith("negative_prompt") for name in call):
        raise ScheduleError(
            f"{planner.schedule.name} was fitted with a negative prompt: the MagCache of vLLM-Omni {OMNI_VERSION} "
            "has one state for both branches, in which every call is a step, and would not follow the plan"
        )
    plan = planner.best()
    config = settings(OMNI_WORDS, plan, retention=0.4 / plan.steps)  # 0 is refused; this rounds to no step
    text = json.dumps({**config, "num_inference_steps": plan.steps, "mag_ratios": plan.ratios}) + "\n"
    expects = (
        f"exactly {plan.steps} steps of FLUX.1 or FLUX.2, which its MagCache is written for",
        "no negative prompt: with true CFG both branches share one state, and the mask goes on at every call",
    )
    return Exported(".json", text, OMNI_USE % "mag_cache", plan, expects, (ONE_GRID,))


def write_omni_polynomial(given: Polynomial, coefficients: list[float]) -> Exported:
    text = json.dumps({"rel_l1_thresh": given.threshold, "coefficients": coefficients}) + "\n"
    return Exported(".json", text, OMNI_USE % "tea_cache", None, FITTED_ON)


def read_omni(data: Any, steps: int | None) -> Settings:
    if "coefficients" in data:
        return read_polynomial(data["coefficients"], data.get("rel_l1_thresh", data.get("threshold")))
    n = check_steps(data.get("num_inference_steps") or 28)
    ratios = (*data["mag_ratios"], *([1.0] * n))[:n]  # it moves none to another number of steps
    return reuse(policy(OMNI_WORDS, data, ratios), "blocks", n)


VLLM_OMNI = Format(
    "vllm-omni", OMNI_VERSION, read_omni, write_omni, write_omni_polynomial,
    models=("FluxTransformer2DModel", "Flux2Transformer2DModel"),
    keys=("mag_ratios", "mag_threshold", "mag_max_skip_steps", "mag_retention_ratio", "coefficients",
          "rel_l1_thresh"),
)  # fmt: skip


# LightX2V: the JSON of `--config_json`.

X2V_WORDS: Words = {
    "max_skip": ("magcache_K", 6), "threshold": ("magcache_thresh", 0.2),
    "retention": ("magcache_retention_ratio", 0.2),
}  # fmt: skip
X2V_USE = "# merge the keys of {path} into the model's configuration, then: --config_json <that>\n"


def write_x2v(planner: ReusePlanner) -> Exported:
    plan = planner.best()
    config = {"infer_steps": plan.steps, "feature_caching": "Mag", "magcache_calibration": False}
    config |= settings(X2V_WORDS, plan)
    config |= {"magcache_ratios": [plan.ratios, plan.ratios]}  # with and without the prompt: guidance needs both
    expects = (f"infer_steps {plan.steps}", 'Wan, HunyuanVideo 1.5 or WorldPlay: no other model has "Mag"')
    return Exported(".json", json.dumps(config) + "\n", X2V_USE, plan, expects, (ONE_GRID,))


def write_x2v_polynomial(given: Polynomial, coefficients: list[float]) -> Exported:
    config = {
        "feature_caching": "Tea",
        "coefficients": [coefficients, coefficients],  # with and without `use_ret_steps`
        "use_ret_steps": False,
        "teacache_thresh": given.threshold,
    }
    return Exported(".json", json.dumps(config) + "\n", X2V_USE, None, FITTED_ON)


def read_x2v(data: Any, steps: int | None) -> Settings:
    """Reads the keys of a TeaCache, or of a MagCache: where branches differ, a step is computed if one is."""
    if "coefficients" in data:
        coefficients = data["coefficients"][0 if data.get("use_ret_steps") else 1]
        return read_polynomial(coefficients, data.get("teacache_thresh"), last=True)
    n = check_steps(data["infer_steps"])
    cond, uncond = (policy(X2V_WORDS, data, ratios, rounded=False, strict=True) for ratios in data["magcache_ratios"])
    plans = [played_steps(reuse(branch).rule, n) for branch in (cond, uncond)]
    if plans[0] == plans[1]:
        return reuse(cond, "blocks", n)
    return reuse_by_mask([int(any(step in plan for plan in plans)) for step in range(n)])


LIGHTX2V = Format(
    "lightx2v", "of 2026-08 (f8aee98)", read_x2v, write_x2v, write_x2v_polynomial,
    keys=("magcache_ratios", "feature_caching", "coefficients", "teacache_thresh", "use_ret_steps"),
    models=("WanTransformer3DModel", "HunyuanVideo15Transformer3DModel"),
)  # fmt: skip


# ComfyUI-MagCache: an entry of its table of ratios. The node's own limits are kept: it always computes the first
# tenth of the steps, skips at most six in a row, and on Flux always computes step 11, where it neither looks at the
# ratio nor starts to count anew.

RETENTION, LONGEST, NODE_THRESHOLD = 0.1, 6, 0.3  # ends of the ranges of the node's inputs
FORCED = (11,)  # of Flux
GUIDED = ("chroma", "qwen", "hunyuan_video1.5", "wan")  # with an entry for each branch in turn
NODE_USE = """\
# Paste the line of {path} into nodes.py of ComfyUI-MagCache, in place of your model's entry (the second
# one where it runs with guidance), restart, and set the node to: magcache_thresh 0.3, retention_ratio 0.1,
# magcache_K 6, start_step 0, end_step -1.
"""


def write_node(planner: ReusePlanner) -> Exported:
    model = planner.schedule.denoiser.class_name
    forced = FORCED if not model or model.startswith("Flux") else ()
    plan = planner.best(warm_up=max(1, int(RETENTION * planner.steps)), longest=LONGEST, forced=forced)
    both = [ratio for ratio in plan.ratios for _ in range(2)]  # cond and uncond take turns
    text = f'"flux": np.array({plan.ratios}),  # without guidance\n"wan2.1_t2v_14B": np.array({both}),  # with\n'
    expects = (f"exactly {plan.steps} steps (it interpolates the table for others)", NOT_SINCE)
    return Exported(".txt", text, NODE_USE, plan, expects, (PATCHED,))


def read_node(data: Any, steps: int | None) -> Settings:
    """Reads an entry, at the settings of the node that the export asks for."""
    flux, ratios = data["model"].startswith("flux"), data["mag_table"]
    own = Magnitude(
        ratios=tuple(ratios[::2] if data["model"].startswith(GUIDED) else ratios), threshold=NODE_THRESHOLD,
        max_skip=LONGEST, retention=RETENTION, rounded=False, strict=flux, always=FORCED if flux else (),
    )  # fmt: skip
    return reuse(own, "blocks")


COMFYUI_MAGCACHE = Format("comfyui-magcache", "of 2025-11 (47bdd2a)", read_node, write_node, keys=("mag_table",))
