"""ComfyUI-MagCache: the mask as an entry of its table of magnitude ratios.

The node's own limits are kept: it always computes the first tenth of the steps, skips at most six in a row,
and on Flux always computes step 11, where it neither looks at the ratio nor starts to count anew.
"""

from typing import Any

from ...policies.magnitude import Magnitude
from .mask import Exported, Format, ReusePlanner, Settings, reuse

VERSION = "of 2025-11 (47bdd2a)"
RETENTION, LONGEST, THRESHOLD = 0.1, 6, 0.3  # ends of the ranges of the node's inputs
FORCED = (11,)  # of Flux
PATCHED = "convenience: its table is source code and has to be patched"
NOT_SINCE = "a ComfyUI that it works with: on 0.8.0 it is not imported"
GUIDED = ("chroma", "qwen", "hunyuan_video1.5", "wan")  # with an entry for each branch in turn
USE = """\
# Paste the line of {path} into nodes.py of ComfyUI-MagCache, in place of your model's entry (the second
# one where it runs with guidance), restart, and set the node to: magcache_thresh 0.3, retention_ratio 0.1,
# magcache_K 6, start_step 0, end_step -1.
"""


def write(planner: ReusePlanner) -> Exported:
    model = planner.schedule.denoiser.class_name
    forced = FORCED if not model or model.startswith("Flux") else ()
    plan = planner.best(warm_up=max(1, int(RETENTION * planner.steps)), longest=LONGEST, forced=forced)
    both = [ratio for ratio in plan.ratios for _ in range(2)]  # cond and uncond take turns
    text = f'"flux": np.array({plan.ratios}),  # without guidance\n"wan2.1_t2v_14B": np.array({both}),  # with\n'
    expects = (f"exactly {plan.steps} steps (it interpolates the table for others)", NOT_SINCE)
    return Exported(".txt", text, USE, plan, expects, (PATCHED,))


def read(data: Any, steps: int | None) -> Settings:
    """Reads an entry, at the settings of the node that the export asks for."""
    flux, ratios = data["model"].startswith("flux"), data["mag_table"]
    policy = Magnitude(
        ratios=tuple(ratios[::2] if data["model"].startswith(GUIDED) else ratios),
        threshold=THRESHOLD,
        max_skip=LONGEST,
        retention=RETENTION,
        rounded=False,
        strict=flux,
        always=FORCED if flux else (),
    )
    return reuse(policy, "blocks")


FORMAT = Format("comfyui-magcache", VERSION, read, write, keys=("mag_table",))
