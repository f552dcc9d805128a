"""Measures schedules on held-out prompts: same noise, decoded images, next to fewer steps."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..profiling.measure import Progress, silent
from ..runs import Call, Prompt
from ..schedule.schedule import Schedule
from .generate import Generation, generate
from .metrics import psnr, ssim, summary

__all__ = ["Row", "compared", "row"]


@dataclass(frozen=True)
class Row:
    """A line of a comparison.

    Arguments:
        name: What was run.
        calls: Steps whose denoiser was called.
        psnr: Decibels against the full run, mean and 5th percentile.
        ssim: The same for structural similarity; None without the extra `metrics`.
        loop: How many times faster than the full run, in the denoising loop.
        total: The same for the whole pipeline, text encoding and decoding included.
    """

    name: str
    calls: int
    psnr: dict[str, float]
    ssim: dict[str, float] | None
    loop: float
    total: float


def row(name: str, made: Generation, full: Generation) -> Row:
    """Returns what a generation is worth next to the full run."""
    pairs = list(zip(made.images, full.images, strict=True))
    pictures = full.images[0].ndim >= 3 and importlib.util.find_spec("torchmetrics") is not None
    return Row(
        name,
        made.calls,
        summary([psnr(a, b) for a, b in pairs]),
        summary([ssim(a, b) for a, b in pairs]) if pictures else None,
        full.loop / made.loop,
        full.total / made.total,
    )


def compared(
    pipe: Any,
    call: Call,
    prompts: Sequence[Prompt],
    schedules: Sequence[Schedule],
    *,
    batch_size: int = 1,
    first: int = 0,
    progress: Progress = silent,
) -> tuple[list[Row], list[Generation]]:
    """Runs schedules, and fewer steps with the same calls, against the full run: same prompts and noise.

    Arguments:
        pipe: A diffusers pipeline; it is not changed.
        call: How to call it in full.
        prompts: Held-out prompts.
        schedules: What to measure.
        batch_size: How many prompts a run has.
        first: The number of the first prompt, which sets the noise.
        progress: Told the stage, what is done and of how much.

    Returns:
        A row for the full run, then one for each schedule and one for as many steps, in turn; and what was
        generated, an entry a row.
    """

    def made(name: str, how: Call, schedule: Schedule | None = None) -> Generation:
        return generate(
            pipe, how, prompts, schedule, batch_size=batch_size, offset=first,
            progress=lambda done: progress(name, done, len(prompts)),
        )  # fmt: skip

    generate(pipe, call, prompts[:batch_size], batch_size=batch_size)  # warms up: first runs are slow
    full = made("full run", call)
    names, all_made = ["full run"], [full]
    for schedule in schedules:
        all_made.append(made(schedule.name, call, schedule))
        fewer = replace(call, steps=all_made[-1].calls)
        all_made.append(made(f"{fewer.steps} steps", fewer))
        names += [schedule.name, f"{fewer.steps} steps"]
    return [row(name, one, full) for name, one in zip(names, all_made, strict=True)], all_made
