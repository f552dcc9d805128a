"""Plays a table of `adaptcache export --to table`, as docs/table.md defines it, with NumPy alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Array = np.ndarray
Denoise = Callable[[Array, int], Array]  # latents and the number of the step -> the guided model output
Sampler = Callable[[Array, Array, int], Array]  # latents, model output, number of the step -> the next latents


def euler(table: Mapping[str, Any]) -> Sampler:
    """Returns the sampler of flow matching: straight on along the velocity, from sigma to sigma."""
    sigmas = table["sigmas"]
    return lambda x, u, i: x + (sigmas[i + 1] - sigmas[i]) * u


def play(table: Mapping[str, Any], x: Array, denoise: Denoise, sampler: Sampler) -> list[Array]:
    """Returns the latents after every step.

    Arguments:
        table: The table, as it was read from its file; only its first track is played.
        x: The latents before the first step: noise.
        denoise: Calls the denoiser, with guidance.
        sampler: Takes a step.
    """
    if table["table"] not in (1, 2):
        raise ValueError(f"this plays tables of versions 1 and 2, not {table['table']}")
    rows = {row["step"]: row for row in table["tracks"][0]}
    u: dict[int, Array] = {}  # outputs of the computed steps
    before: dict[int, Array] = {}  # latents before each step
    landed = []
    for i in range(len(table["times"])):
        before[i] = x
        if i in table["compute"]:
            output = u[i] = denoise(x, i)
        if row := rows.get(i):  # of every skipped step, and of computed ones that are corrected
            output = row["x"] * x + row["x0"] * before[0]
            output = output + sum(w * u[c] for w, c in zip(row["u"], row["from"], strict=True))
            output = output + sum(w * before[c] for w, c in zip(row.get("past_x", ()), row["from"], strict=False))
        x = sampler(x, output, i)
        landed.append(x)
    return landed
