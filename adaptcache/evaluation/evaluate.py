"""Measures schedules on held-out prompts: same noise, decoded images, next to as many plain steps."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..engines import make_setup
from ..runs import Prompt, PromptSet, Setup
from ..schedule.schedule import Schedule
from .generate import Generation, generate
from .metrics import psnr_each, ssim_of, summary


@dataclass(frozen=True)
class Row:
    """A line of a comparison."""

    name: str  # what was run
    calls: int  # steps whose denoiser was called
    psnr: dict[str, float]  # decibels against the full run, mean and 5th percentile
    ssim: dict[str, float] | None  # the same for structural similarity; None without the extra `metrics`
    loop: float  # how many times faster than the full run, in the denoising loop
    total: float  # the same for the whole pipeline, text encoding and decoding included


def evaluate(
    pipe: Any,
    schedules: Schedule | str | Path | Sequence[Schedule | str | Path],
    prompts: Iterable[Prompt],
    num_inference_steps: int = 28,
    **options: Any,
) -> list[Row]:
    """Scores schedules on held-out prompts, each beside as many plain steps.

    Arguments:
        pipe: A diffusers pipeline, or an engine; it is not changed.
        schedules: What to measure: schedules, or files, folders or hub ids.
        prompts: Prompts that nothing was fitted on.
        num_inference_steps: The steps of the full run.
        options: As for `calibrate`: `seed`, `batch_size`, `progress`, ..., and arguments of the pipeline.

    Returns:
        A row for the full run, then one for each schedule and one for as many steps, in turn.
    """
    first, known = options.pop("first", 0), ["first", "num_inference_steps", "schedules", "prompts"]
    setup = make_setup(pipe, num_inference_steps, options, "evaluate", known)
    many = [schedules] if isinstance(schedules, (Schedule, str, Path)) else list(schedules)
    loaded = [one if isinstance(one, Schedule) else Schedule.from_pretrained(one) for one in many]
    return evaluate_schedules(setup, PromptSet.of(prompts, first), loaded)[0]


def evaluate_schedules(
    setup: Setup, prompts: PromptSet, schedules: Sequence[Schedule]
) -> tuple[list[Row], list[Generation]]:
    """Runs schedules, and fewer steps with the same calls, against the full run: same prompts and noise.

    Returns:
        The rows as in `evaluate`, and what was generated, an entry a row.
    """
    if not len(prompts):
        raise ValueError("there are no prompts to measure on: give one or more")
    generate(setup, prompts[: setup.batch_size])  # warms up: first runs are slow
    full = generate(setup, prompts, stage="full run")
    names, made = ["full run"], [full]
    for schedule in schedules:
        made.append(generate(setup, prompts, schedule, stage=schedule.name))
        steps = round(made[-1].calls)
        fewer = replace(setup, call=replace(setup.call, num_inference_steps=steps))
        names += [schedule.name, f"{steps} steps"]
        made.append(generate(fewer, prompts, stage=names[-1]))
    rows = [
        Row(
            name, round(one.calls), summary(psnr_each(one.images, full.images)),
            ssim_of(list(zip(one.images, full.images, strict=True))), full.loop / one.loop, full.total / one.total,
        )
        for name, one in zip(names, made, strict=True)
    ]  # fmt: skip
    return rows, made
