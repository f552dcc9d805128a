"""SGLang diffusion: the mask as lengths of runs, in the `cache_dit_params` of a request."""

from __future__ import annotations

import itertools
import json

from .mask import Exported, Reuse

__all__ = ["bins", "sglang"]

USE = """\
# in the body of a request: "cache_dit_params": <the content of {path}>
# or for the whole server:
export SGLANG_CACHE_DIT_ENABLED=true SGLANG_CACHE_DIT_FN=1 SGLANG_CACHE_DIT_BN=0 SGLANG_CACHE_DIT_WARMUP=0 \\
  SGLANG_CACHE_DIT_SCM_COMPUTE_BINS=%s SGLANG_CACHE_DIT_SCM_CACHE_BINS=%s SGLANG_CACHE_DIT_SCM_POLICY=static
"""


def bins(computed: tuple[int, ...]) -> tuple[list[int], list[int]]:
    """Returns the lengths of the runs of computed steps, and of those of skipped steps, in order."""
    runs = [(step, len(list(run))) for step, run in itertools.groupby(computed)]
    return [n for step, n in runs if step], [n for step, n in runs if not step]


def sglang(reuse: Reuse) -> Exported:
    """Returns the parameters as JSON."""
    mask = reuse.best()
    compute, cache = bins(mask.computed)
    parameters = {
        "Fn_compute_blocks": 1,
        "Bn_compute_blocks": 0,
        "max_warmup_steps": 0,
        "scm_compute_bins": compute,
        "scm_cache_bins": cache,
        "scm_policy": "static",
    }
    use = USE % tuple(",".join(map(str, lengths)) for lengths in (compute, cache))
    return Exported(
        "sglang", ".json", json.dumps(parameters) + "\n", use, mask,
        lost=(*mask.lost, "a little speed: the first block runs at skipped steps too"),
        expects=(f"exactly {mask.steps} steps, warm-up requests too (fewer fail, more are cached on)",),
    )  # fmt: skip
