"""cache-dit: a steps computation mask in the YAML that `cache_dit.load_configs` reads."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import yaml

from ...errors import ScheduleError
from ..diffusers.components import denoisers_of
from .mask import Exported, Format, ReusePlan, ReusePlanner, Settings, reuse_by_mask

VERSION = "1.5.3"
FIRST_BLOCK = "a little speed: the first block runs at skipped steps too"
USE = """\
import cache_dit

cache_dit.enable_cache(pipe, **cache_dit.load_configs("{path}"))
# given a transformer alone, before each run: cache_dit.refresh_context(transformer, num_inference_steps=%d)
"""


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


def write(planner: ReusePlanner) -> Exported:
    plan = planner.best()
    text = yaml.safe_dump({"cache_config": mask_config(plan)}, default_flow_style=None, sort_keys=False, width=10_000)
    return Exported(".yaml", text, USE % plan.steps, plan, (f"exactly {plan.steps} steps",), (FIRST_BLOCK,))


def read(data: Any, steps: int | None) -> Settings:
    mask = data["steps_computation_mask" if "steps_computation_mask" in data else "steps_mask"]
    if isinstance(mask, str):
        raise ScheduleError(
            f"the preset {mask!r} is no mask; write out cache_dit.steps_mask(...), "
            "or take Schedule.of('scm', model=...)"
        )
    return reuse_by_mask(mask)


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


FORMAT = Format("cache-dit", VERSION, read, write, keys=("steps_computation_mask", "steps_mask"), apply=apply)
