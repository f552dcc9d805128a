"""How many calls fit into a number of seconds, measured."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

from ..evaluation.generate import generate
from ..runs import Call, Prompt
from ..schedule.schedule import Schedule

__all__ = ["most_calls", "seconds_of"]

RUNS = 3


def seconds_of(pipe: Any, call: Call, prompt: Prompt, schedule: Schedule) -> float:
    """Returns the seconds of one image by a schedule, decoding included: the median of a few runs."""
    generate(pipe, call, [prompt], schedule)  # first runs are slow
    return median(generate(pipe, call, [prompt], schedule).total for _ in range(RUNS))


def most_calls(limit: float, steps: int, seconds: Callable[[int], float]) -> int:
    """Returns the most calls that fit, by bisection.

    Arguments:
        limit: Seconds.
        steps: Of a run.
        seconds: How long a run with so many calls takes.

    Raises:
        ValueError: Not even one call fits.
    """
    low, high = 1, steps
    if (least := seconds(1)) > limit:
        raise ValueError(
            f"a run takes {least:.2f} s with a single denoiser call, so {limit:g} s cannot be met by "
            "skipping calls: take a smaller size, another dtype, or torch.compile"
        )
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if seconds(middle) <= limit else (low, middle - 1)
    return low
