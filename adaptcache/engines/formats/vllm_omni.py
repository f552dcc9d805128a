"""vLLM-Omni: the mask as magnitude ratios, in the JSON of `--cache-config`."""

from __future__ import annotations

import json

from .diffusers import THRESHOLD
from .mask import Exported, Reuse

__all__ = ["vllm_omni"]


def vllm_omni(reuse: Reuse) -> Exported:
    """Returns the JSON."""
    mask = reuse.best()
    config = {
        "mag_threshold": THRESHOLD,
        "mag_max_skip_steps": mask.steps,
        "mag_retention_ratio": 0.4 / mask.steps,  # 0 is refused; this rounds to no step
        "num_inference_steps": mask.steps,
        "mag_ratios": [2.0 if step else 1.0 for step in mask.computed],
    }
    return Exported(
        "vllm-omni", ".json", json.dumps(config) + "\n",
        '--cache-backend mag_cache --cache-config "$(cat {path})"\n', mask,
        lost=(*mask.lost, "re-planning for other steps: the mask holds for one number of steps"),
        expects=(f"exactly {mask.steps} steps", "a model its MagCache supports: FLUX.1 or FLUX.2"),
    )  # fmt: skip
