"""Engines with cache-dit: a steps computation mask. cache-dit itself, xDiT and SGLang."""

import itertools
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import yaml

from ...errors import ScheduleError
from ...policies.mask import Mask
from ..diffusers.components import denoisers_of
from .mask import Exported, Format, ReusePlan, ReusePlanner, Settings, check_steps, reuse, reuse_by_mask

FIRST_BLOCK = "a little speed: the first block runs at skipped steps too"


def mask_config(plan: ReusePlan) -> dict[str, Any]:
    """Returns the fields of cache-dit's `DBCacheConfig` that follow a plan."""
    return {
        "Fn_compute_blocks": 1,
        "Bn_compute_blocks": 0,
        "max_warmup_steps": 0,  # a warm-up would win over the mask
        "num_inference_steps": plan.steps,
        "steps_computation_mask": list(plan.computed),
        "steps_computation_policy": "static",
    }


def dump_mask(plan: ReusePlan) -> str:
    """Returns the YAML that `cache_dit.load_configs` reads."""
    config = {"cache_config": mask_config(plan)}
    text: str = yaml.safe_dump(config, default_flow_style=None, sort_keys=False, width=10_000)
    return text


def read_mask(data: Any, steps: int | None) -> Settings:
    mask = data["steps_computation_mask" if "steps_computation_mask" in data else "steps_mask"]
    if isinstance(mask, str):
        raise ScheduleError(
            f"the preset {mask!r} is no mask; write out cache_dit.steps_mask(...), "
            "or take Schedule.of('scm', model=...)"
        )
    return reuse_by_mask(mask)


# cache-dit itself

USE = """\
import cache_dit

cache_dit.enable_cache(pipe, **cache_dit.load_configs("{path}"))
# given a transformer alone, before each run: cache_dit.refresh_context(transformer, num_inference_steps=%d)
"""


def write(planner: ReusePlanner) -> Exported:
    plan = planner.best()
    return Exported(".yaml", dump_mask(plan), USE % plan.steps, plan, (f"exactly {plan.steps} steps",), (FIRST_BLOCK,))


@contextmanager
def apply(pipe: Any, exported: Exported) -> Iterator[None]:
    """Enables the cache, and takes it off again."""
    import cache_dit

    with ExitStack() as undo:
        for denoiser in denoisers_of(pipe):
            undo.enter_context(left_as_found(denoiser))
        cache_dit.enable_cache(pipe, **cache_dit.load_configs(yaml.safe_load(exported.text)))
        undo.callback(cache_dit.disable_cache, pipe)
        yield


@contextmanager
def left_as_found(denoiser: Any) -> Iterator[None]:
    """Restores what cache-dit does not: the forward, and the order of parts, by which others' hooks go."""
    own, parts = dict(vars(denoiser)), dict(denoiser._modules)
    try:
        yield
    finally:
        for now, before in ((vars(denoiser), own), (own["_modules"], parts)):
            now.clear()
            now.update(before)


CACHE_DIT = Format(
    "cache-dit", "1.5.3", read_mask, write, keys=("steps_computation_mask", "steps_mask"), apply=apply
)  # fmt: skip


# xDiT: the JSON of `--cache_config`


def write_xdit(planner: ReusePlanner) -> Exported:
    plan = planner.best()
    # The preset of a model has a calibrator, and a mask of its own that would replace ours.
    config = {**mask_config(plan), "scm_policy": None, "enable_taylorseer": False}
    expects = (
        f"exactly {plan.steps} steps",
        "a model with a DBCachePreset: for others xDiT refuses enable_taylorseer and scm_policy (ValueError)",
    )
    use = '--cache_method dbcache --cache_config "$(cat {path})"\n'
    return Exported(".json", json.dumps(config) + "\n", use, plan, expects, (FIRST_BLOCK,))


XDIT = Format("xdit", "0.7.0", read_mask, write_xdit, keys=("steps_computation_mask", "scm_policy"))


# SGLang: the mask as lengths of runs, in the `cache_dit_params` of a request

BINS_USE = """\
# in the body of a request: "cache_dit_params": <the content of {path}>
# or for the whole server:
export SGLANG_CACHE_DIT_ENABLED=true SGLANG_CACHE_DIT_FN=1 SGLANG_CACHE_DIT_BN=0 SGLANG_CACHE_DIT_WARMUP=0 \\
  SGLANG_CACHE_DIT_SCM_COMPUTE_BINS=%s SGLANG_CACHE_DIT_SCM_CACHE_BINS=%s SGLANG_CACHE_DIT_SCM_POLICY=static
"""


def split_runs(computed: tuple[int, ...]) -> tuple[list[int], list[int]]:
    """Returns the lengths of the runs of computed steps, and of those of skipped steps, in order."""
    runs = [(step, len(list(run))) for step, run in itertools.groupby(computed)]
    return [n for step, n in runs if step], [n for step, n in runs if not step]


def write_bins(planner: ReusePlanner) -> Exported:
    plan = planner.best()
    compute, cache = split_runs(plan.computed)
    parameters = {
        "Fn_compute_blocks": 1,
        "Bn_compute_blocks": 0,
        "max_warmup_steps": 0,
        "scm_compute_bins": compute,
        "scm_cache_bins": cache,
        "scm_policy": "static",
    }
    use = BINS_USE % tuple(",".join(map(str, lengths)) for lengths in (compute, cache))
    wrong = "for fewer the mask is cut without a word, for more there is an AssertionError"
    expects = (f"exactly {plan.steps} steps: {wrong}",)
    return Exported(".json", json.dumps(parameters) + "\n", use, plan, expects, (FIRST_BLOCK,))


def read_bins(data: Any, steps: int | None) -> Settings:
    """Reads the bins; they are cut where they are for more steps than the run has, as by SGLang."""
    prefix = "scm_" if "scm_compute_bins" in data else ""
    compute, cache = data[f"{prefix}compute_bins"], data[f"{prefix}cache_bins"]
    check_steps(sum(map(abs, (*compute, *cache))))
    policy = Mask.of_bins(compute, cache, data.get("num_inference_steps", steps))
    return reuse(policy, steps=len(policy.compute_steps))


SGLANG = Format("sglang", "0.5.23", read_bins, write_bins, keys=("scm_compute_bins", "compute_bins", "scm_policy"))
