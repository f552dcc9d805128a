"""What is drawn from a schedule's kernel: curves over the steps and a heat map, as points for an SVG."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from ..schedule.format import Kernel

__all__ = ["change_curve", "error_curve", "heat_map", "uri"]

DARKEST = 4.0  # decades of difference that the heat map spans
WIDTH, HEIGHT = 640, 260
LEFT, RIGHT, TOP, BOTTOM = 56, 10, 12, 34  # margins
LEAST = 1e-12


def error_curve(kernel: Kernel, computed: Sequence[int]) -> dict[str, Any]:
    """Returns what an error at each step does to the end result.

    Arguments:
        kernel: Of the schedule.
        computed: The steps it computes, to be marked.
    """
    return curve(kernel.sensitivity, computed)


def change_curve(kernel: Kernel, computed: Sequence[int]) -> dict[str, Any]:
    """Returns how far each output is from the one before, relative to that; the first has none before."""
    gram = np.array(kernel.gram)
    size = np.diag(gram)
    apart = size[1:] - 2 * np.diag(gram, 1) + size[:-1]
    change = np.sqrt(np.clip(apart, 0, None) / np.clip(size[:-1], LEAST, None))
    return curve(change.tolist(), computed, first=1)


def curve(values: Sequence[float], computed: Sequence[int], first: int = 0) -> dict[str, Any]:
    """Returns the points of a curve over steps, in decades."""
    logs = [math.log10(max(value, LEAST)) for value in values]
    low, high = math.floor(min(logs)), math.ceil(max(logs))
    high += low == high
    last = first + len(logs) - 1

    def across(step: int) -> float:
        return round(LEFT + step * (WIDTH - LEFT - RIGHT) / max(1, last), 1)

    def down(value: float) -> float:
        return round(TOP + (high - value) * (HEIGHT - TOP - BOTTOM) / (high - low), 1)

    points = [
        {"x": across(first + k), "y": down(log), "step": first + k, "value": f"{value:.3g}",
         "on": first + k in computed}
        for k, (log, value) in enumerate(zip(logs, values, strict=True))
    ]  # fmt: skip
    skip = max(1, (high - low) // 5)
    decades = [{"y": down(d), "label": f"1e{d}"} for d in range(low, high + 1, skip)]
    box = {"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": WIDTH - RIGHT}
    return {**box, "decades": decades, "points": points, "last": last}


def heat_map(kernel: Kernel) -> str:
    """Returns a picture of how far the outputs of any two steps are apart, a pixel a pair."""
    gram = np.array(kernel.gram)
    size = np.sqrt(np.clip(np.diag(gram), 1e-30, None))
    apart = np.clip(1 - gram / np.outer(size, size), 10**-DARKEST, 1)
    share = 1 + np.log10(apart)[..., None] / DARKEST  # 0 where alike, 1 where unrelated
    near, far = np.array([20, 60, 120]), np.array([250, 225, 160])
    return uri(Image.fromarray((near + share * (far - near)).astype(np.uint8)))


def uri(image: Image.Image) -> str:
    """Returns a picture as text that a page can hold."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
