"""ComfyUI-TeaCache: every n-th step, or a polynomial, as an entry of its table of coefficients."""

from typing import Any

from ...policies.polynomial import Polynomial
from .comfyui_magcache import NOT_SINCE, PATCHED
from .mask import Exported, Format, ReusePlanner, Settings
from .teacache import FITTED_ON, constant, read_polynomial

VERSION = "of 2025-07 (91dff8e)"
THRESHOLD = 0.4  # the node's default
USE = """\
# Paste the line of {path} into nodes.py of ComfyUI-TeaCache, in place of your model's entry, restart, and
# set the node to: rel_l1_thresh %s, start_percent 0, end_percent 1.
"""


def write(planner: ReusePlanner) -> Exported:
    interval, plan = planner.every_nth(last=False)
    expects = (f"any number of steps: every {interval}th is computed", NOT_SINCE)
    text = f'"flux": {constant(interval, THRESHOLD)},\n'
    return Exported(".txt", text, USE % THRESHOLD, plan, expects, (PATCHED,))


def write_polynomial(policy: Polynomial, coefficients: list[float]) -> Exported:
    use = USE % policy.threshold
    return Exported(".txt", f'"flux": {coefficients},\n', use, None, (*FITTED_ON, NOT_SINCE), (PATCHED,))


def read(data: Any, steps: int | None) -> Settings:
    return read_polynomial(data["tea_table"], THRESHOLD)


FORMAT = Format("comfyui-teacache", VERSION, read, write, write_polynomial, keys=("tea_table",))
