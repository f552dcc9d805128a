"""ComfyUI-TeaCache: every n-th step, as an entry of its table of coefficients."""

from __future__ import annotations

from .mask import Exported, Reuse
from .tensorrt_llm import constant

__all__ = ["comfyui_teacache"]

THRESHOLD = 0.4  # the node's default

USE = """\
# Paste the line of {path} into nodes.py of ComfyUI-TeaCache, in place of your model's entry, restart, and
# set the node to: rel_l1_thresh 0.4, start_percent 0, end_percent 1.
"""


def comfyui_teacache(reuse: Reuse) -> Exported:
    """Returns the entry as Python."""
    interval, mask = reuse.every(last=False)
    return Exported(
        "comfyui-teacache", ".txt", f'"flux": {constant(interval, THRESHOLD)},\n', USE, mask,
        lost=(*mask.lost, "convenience: its table is source code and has to be patched"),
        expects=(f"any number of steps: every {interval}th is computed",),
    )  # fmt: skip
