"""Stock diffusers: any mask as the settings of a MagCache; inference needs no adaptcache.

MagCache skips while the product of magnitude ratios stays near 1. A ratio of 2 makes its error 1, above
the threshold, so the step is computed and the error starts anew; a ratio of 1 adds none, so the step is
skipped: the ratios are the mask.
"""

from __future__ import annotations

import json
from typing import Any

from .mask import Exported, Mask, Reuse

__all__ = ["THRESHOLD", "diffusers", "magcache"]

THRESHOLD = 0.5  # between the errors of a skipped step, 0, and of a computed one, 1

USE = """\
import json
from diffusers import MagCacheConfig

config = MagCacheConfig(**json.load(open("{path}")))
pipe.transformer.enable_cache(config)  # call disable_cache() first if a cache is on
"""


def magcache(mask: Mask) -> dict[str, Any]:
    """Returns the arguments of diffusers' `MagCacheConfig` that follow a mask."""
    return {
        "threshold": THRESHOLD,
        "max_skip_steps": mask.steps,
        "retention_ratio": 0.0,
        "num_inference_steps": mask.steps,
        "mag_ratios": [2.0 if step else 1.0 for step in mask.computed],
    }


def diffusers(reuse: Reuse) -> Exported:
    """Returns the arguments of a `MagCacheConfig` as JSON."""
    mask = reuse.best()
    return Exported(
        "diffusers", ".json", json.dumps(magcache(mask), indent=1) + "\n", USE, mask,
        lost=(*mask.lost, "re-planning for other steps: the mask holds for one number of steps"),
        expects=(
            f"exactly num_inference_steps={mask.steps}, all of them run (no image-to-image strength below 1)",
            "a transformer whose blocks diffusers knows (enable_cache says if not), and only one",
        ),
    )  # fmt: skip
