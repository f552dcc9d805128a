"""xDiT: a steps computation mask in the JSON of `--cache_config`."""

import json

from . import cache_dit
from .mask import Exported, Format, ReusePlanner

VERSION = "0.7.0"


def write(planner: ReusePlanner) -> Exported:
    plan = planner.best()
    # The preset of a model has a calibrator, and a mask of its own that would replace ours.
    config = {**cache_dit.mask_config(plan), "scm_policy": None, "enable_taylorseer": False}
    expects = (
        f"exactly {plan.steps} steps",
        "a model with a DBCachePreset: for others xDiT refuses enable_taylorseer and scm_policy (ValueError)",
    )
    use = '--cache_method dbcache --cache_config "$(cat {path})"\n'
    return Exported(".json", json.dumps(config) + "\n", use, plan, expects, (cache_dit.FIRST_BLOCK,))


FORMAT = Format("xdit", VERSION, cache_dit.read, write, keys=("steps_computation_mask", "scm_policy"))
