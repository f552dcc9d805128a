"""Stock diffusers: any plan as the settings of a MagCache; inference needs no adaptcache."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ...policies.magnitude import Magnitude
from ..diffusers.components import denoisers_of
from .mask import Exported, Format, ReusePlanner, Settings, check_steps, reuse

VERSION = "0.42.1"
THRESHOLD = 0.5  # between the errors of a skipped step, 0, and of a computed one, 1
ONE_GRID = "re-planning for other steps: the mask holds for one number of steps"
USE = """\
import json
from diffusers import MagCacheConfig

config = MagCacheConfig(**json.load(open("{path}")))
pipe.transformer.enable_cache(config)  # call disable_cache() first if a cache is on
"""


def write(planner: ReusePlanner) -> Exported:
    plan = planner.best()
    config = {
        "threshold": THRESHOLD,
        "max_skip_steps": plan.steps,
        "retention_ratio": 0.0,
        "num_inference_steps": plan.steps,
        "mag_ratios": plan.ratios,
    }
    expects = (
        f"exactly num_inference_steps={plan.steps}, all of them run (no image-to-image strength below 1)",
        "a transformer whose blocks diffusers knows (enable_cache says if not), and only one",
    )
    return Exported(".json", json.dumps(config, indent=1) + "\n", USE, plan, expects, (ONE_GRID,))


def read(data: Any, steps: int | None) -> Settings:
    policy = Magnitude(
        ratios=tuple(data["mag_ratios"]),
        threshold=data.get("threshold", 0.06),
        max_skip=data.get("max_skip_steps", 3),
        retention=data.get("retention_ratio", 0.2),
    )
    return reuse(policy, "blocks", check_steps(data.get("num_inference_steps", 28)))


@contextmanager
def apply(pipe: Any, exported: Exported) -> Iterator[None]:
    """Enables the cache, and disables it again."""
    from diffusers import MagCacheConfig

    denoiser: Any = denoisers_of(pipe)[0]
    denoiser.enable_cache(MagCacheConfig(**json.loads(exported.text)))
    try:
        yield
    finally:
        denoiser.disable_cache()


FORMAT = Format(
    "diffusers", VERSION, read, write, apply=apply,
    keys=("mag_ratios", "max_skip_steps", "retention_ratio"),
)  # fmt: skip
