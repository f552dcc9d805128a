"""Evidence: what a schedule is worth on prompts that it was not fitted on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..calibration.targets import claimed
from ..distributed import ALONE, Ranks
from ..profiling.cache import Store, content_key
from ..profiling.measure import Progress, silent
from ..profiling.reference import batches
from ..runs import Call, Prompt
from ..schedule.format import Evidence
from ..schedule.schedule import Schedule
from .certify import Claim
from .generate import generate
from .metrics import psnr, summary

__all__ = ["check_images", "validated"]


def check_images(images: Sequence[np.ndarray], first: int, run: str) -> None:
    """Raises where an image is not finite: stored as numbers it would be black, and count as a match."""
    for number, image in enumerate(images, start=first):
        if not np.isfinite(image).all():
            raise ValueError(
                f"the image of held-out prompt {number} from {run} has values that are not finite: "
                "load the pipeline in bfloat16 or float32, or leave the prompt out"
            )


def validated(
    pipe: Any,
    call: Call,
    held_out: Sequence[Prompt],
    schedule: Schedule,
    *,
    batch_size: int = 1,
    finer: int = 1,
    first: int = 0,
    claim: Claim | None = None,
    store: Store | None = None,
    ranks: Ranks = ALONE,
    progress: Progress = silent,
) -> Schedule:
    """Returns the schedule with the evidence of held-out prompts.

    Arguments:
        first: The number of the first held-out prompt: its noise is not that of a calibration prompt.
        claim: What they should show; where they do not, the schedule computes everything.
        ranks: Who shares the batches.
    """
    count, jobs = len(held_out), list(batches(held_out, batch_size))
    key = content_key(pipe, call, held_out, batch_size, finer, first, "images") if store else ""
    truth: dict[int, list[np.ndarray]] = {}  # of this rank's batches

    def full(number: int) -> None:
        start, batch = jobs[number]
        images = store.load_images(key, number) if store else None
        if images is None:
            images = generate(
                pipe, call, batch, batch_size=batch_size, finer=finer, offset=first + start
            ).images
            check_images(images, start, "the full run")
            if store:
                store.save_images(key, images, number)
        truth[number] = images

    def planned(number: int) -> tuple[list[float], int]:
        start, batch = jobs[number]
        made = generate(pipe, call, batch, schedule, batch_size=batch_size, offset=first + start)
        check_images(made.images, start, "the run by the schedule")
        return [psnr(a, b) for a, b in zip(made.images, truth[number], strict=True)], made.calls

    def told(stage: str) -> Callable[[int], None]:
        return lambda done: progress(stage, min(done * batch_size, count), count)

    ranks.each(len(jobs), full, told("held-out, full"))
    results = ranks.each(len(jobs), planned, told("held-out, by schedule"))
    calls, steps = sum(calls for _, calls in results) // len(jobs), len(schedule.grid.times)
    values = [value for found, _ in results for value in found]
    evidence = Evidence(
        prompts=f"{count} held-out",
        n=count,
        calls=(calls, steps),
        psnr=summary(values),
        speed=steps / calls,
    )
    return claimed(schedule, evidence, values, claim)
