"""SGLang diffusion: the mask as lengths of runs, in the `cache_dit_params` of a request."""

import itertools
import json
from typing import Any

from ...policies.mask import Mask
from .cache_dit import FIRST_BLOCK
from .mask import Exported, Format, ReusePlanner, Settings, check_steps, reuse

VERSION = "0.5.23"
USE = """\
# in the body of a request: "cache_dit_params": <the content of {path}>
# or for the whole server:
export SGLANG_CACHE_DIT_ENABLED=true SGLANG_CACHE_DIT_FN=1 SGLANG_CACHE_DIT_BN=0 SGLANG_CACHE_DIT_WARMUP=0 \\
  SGLANG_CACHE_DIT_SCM_COMPUTE_BINS=%s SGLANG_CACHE_DIT_SCM_CACHE_BINS=%s SGLANG_CACHE_DIT_SCM_POLICY=static
"""


def split_runs(computed: tuple[int, ...]) -> tuple[list[int], list[int]]:
    """Returns the lengths of the runs of computed steps, and of those of skipped steps, in order."""
    runs = [(step, len(list(run))) for step, run in itertools.groupby(computed)]
    return [n for step, n in runs if step], [n for step, n in runs if not step]


def write(planner: ReusePlanner) -> Exported:
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
    use = USE % tuple(",".join(map(str, lengths)) for lengths in (compute, cache))
    wrong = "for fewer the mask is cut without a word, for more there is an AssertionError"
    expects = (f"exactly {plan.steps} steps: {wrong}",)
    return Exported(".json", json.dumps(parameters) + "\n", use, plan, expects, (FIRST_BLOCK,))


def read(data: Any, steps: int | None) -> Settings:
    """Reads the bins; they are cut where they are for more steps than the run has, as by SGLang."""
    prefix = "scm_" if "scm_compute_bins" in data else ""
    compute, cache = data[f"{prefix}compute_bins"], data[f"{prefix}cache_bins"]
    check_steps(sum(map(abs, (*compute, *cache))))
    policy = Mask.of_bins(compute, cache, data.get("num_inference_steps", steps))
    return reuse(policy, steps=len(policy.compute_steps))


FORMAT = Format("sglang", VERSION, read, write, keys=("scm_compute_bins", "compute_bins", "scm_policy"))
