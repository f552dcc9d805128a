"""ComfyUI-MagCache: the mask as an entry of its table of magnitude ratios.

The node's own limits are kept: it always computes the first tenth of the steps, and skips at most six
in a row.
"""

from __future__ import annotations

from .mask import Exported, Reuse

__all__ = ["comfyui_magcache"]

RETENTION, LONGEST, THRESHOLD = 0.1, 6, 0.3  # ends of the ranges of the node's inputs

USE = """\
# Paste the line of {path} into nodes.py of ComfyUI-MagCache, in place of your model's entry (the second
# one where it runs with guidance), restart, and set the node to: magcache_thresh 0.3, retention_ratio 0.1,
# magcache_K 6, start_step 0, end_step -1.
"""


def comfyui_magcache(reuse: Reuse) -> Exported:
    """Returns the entry, without and with guidance, as Python."""
    mask = reuse.best(warm_up=max(1, int(RETENTION * reuse.steps)), longest=LONGEST)
    ratios = [2.0 if step else 1.0 for step in mask.computed]
    both = [ratio for ratio in ratios for _ in range(2)]  # cond and uncond take turns
    text = f'"flux": np.array({ratios}),  # without guidance\n"wan2.1_t2v_14B": np.array({both}),  # with\n'
    return Exported(
        "comfyui-magcache", ".txt", text, USE, mask,
        lost=(*mask.lost, "convenience: its table is source code and has to be patched"),
        expects=(f"exactly {mask.steps} steps (it interpolates the table for others)",),
    )  # fmt: skip
