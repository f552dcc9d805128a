"""LightX2V: the mask as magnitude ratios, in the JSON of `--config_json`."""

from __future__ import annotations

import json

from .diffusers import THRESHOLD
from .mask import Exported, Reuse

__all__ = ["lightx2v"]


def lightx2v(reuse: Reuse) -> Exported:
    """Returns the keys to merge into a configuration, as JSON."""
    mask = reuse.best()
    ratios = [2.0 if step else 1.0 for step in mask.computed]
    config = {
        "infer_steps": mask.steps,
        "feature_caching": "Mag",
        "magcache_calibration": False,
        "magcache_K": mask.steps,
        "magcache_thresh": THRESHOLD,
        "magcache_retention_ratio": 0.0,
        "magcache_ratios": [ratios, ratios],  # with and without the prompt: guidance needs both
    }
    return Exported(
        "lightx2v", ".json", json.dumps(config) + "\n",
        "# merge the keys of {path} into the model's configuration, then: --config_json <that>\n", mask,
        lost=(*mask.lost, "re-planning for other steps: the mask holds for one number of steps"),
        expects=(f"infer_steps {mask.steps}",),
    )  # fmt: skip
