"""xDiT: a steps computation mask in the JSON of `--cache_config`."""

from __future__ import annotations

import json

from .mask import Exported, Reuse

__all__ = ["xdit"]


def xdit(reuse: Reuse) -> Exported:
    """Returns the JSON."""
    mask = reuse.best()
    config = {
        "Fn_compute_blocks": 1,
        "Bn_compute_blocks": 0,
        "max_warmup_steps": 0,
        "num_inference_steps": mask.steps,
        "steps_computation_mask": list(mask.computed),
        "steps_computation_policy": "static",
        "scm_policy": None,  # its default is a preset, which would replace the mask
        "enable_taylorseer": False,
    }
    return Exported(
        "xdit", ".json", json.dumps(config) + "\n",
        '--cache_method dbcache --cache_config "$(cat {path})"\n', mask,
        lost=(*mask.lost, "a little speed: the first block runs at skipped steps too"),
        expects=(f"exactly {mask.steps} steps",),
    )  # fmt: skip
