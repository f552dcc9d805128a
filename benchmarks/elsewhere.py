"""What a schedule is worth where it was not calibrated: `python -m benchmarks.elsewhere`.

Runs the demo model by a shipped schedule on other kinds of prompts, with guidance, other numbers of steps, from an
image and in bfloat16, one prompt a call. Prints decibels against the full run there (mean and 5th percentile), those
of as many plain steps, and what the report says: its evidence, how many single runs it calls unlike the calibration
prompts, whether it does so of all of them together, and what an instant schedule reaches with as many calls.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import FluxImg2ImgPipeline

import adaptcache
from adaptcache.errors import ScheduleError
from adaptcache.evaluation.metrics import psnr, summary
from adaptcache.presets import read_prompts, resolve
from adaptcache.schedule.schedule import Schedule

STRENGTH = 0.6
NEGATIVE = "blurry"


@dataclass(frozen=True)
class Place:
    """Where a schedule is tried.

    Arguments:
        name: What is other than at calibration.
        prompts: The prompt file whose held-out part is used.
        steps: Of a full run.
        call: Further arguments of the pipeline.
        image: Whether a run starts from another prompt's picture.
        dtype: Of weights and latents.
    """

    name: str
    prompts: str = "emoji-32"
    steps: int = 28
    call: Mapping[str, Any] = field(default_factory=dict)
    image: bool = False
    dtype: torch.dtype = torch.float32


def guided(scale: float) -> Place:
    return Place(f"guidance {scale:g}", call={"true_cfg_scale": scale, "negative_prompt": NEGATIVE})


PLACES = (
    Place("as calibrated"),
    Place("pairs, plain words, scenes", prompts="emoji-varied"),
    Place("descriptions of photographs", prompts="general"),
    Place("descriptions of clips", prompts="video"),
    guided(2.0),
    guided(5.0),
    *(Place(f"{steps} steps", steps=steps) for steps in (12, 20, 40, 50)),
    Place(f"image-to-image at {STRENGTH:g}", image=True),
    Place("bfloat16", dtype=torch.bfloat16),
)


def prompts_of(place: Place, count: int) -> list[str]:
    """Returns held-out prompts, of those of mixed difficulty the ones that are no captions of the model's kind."""
    known = read_prompts(place.prompts).held_out
    if place.prompts == "emoji-varied":
        known = tuple(text for text in known if "noto style" not in text)
    return list(known[:count])


def steps_for(calls: int, place: Place) -> int:
    """Returns the number of steps with which a plain run has so many denoiser steps."""
    if not place.image:
        return calls
    return next(n for n in range(calls, 10 * calls) if n - int(max(n - n * STRENGTH, 0)) >= calls)


def tried(pipe: Any, schedule: Schedule, place: Place, arguments: Mapping[str, Any], count: int) -> list[str]:
    """Returns a row of the table."""
    prompts = prompts_of(place, count)

    def made(number: int, steps: int, image: Any = None) -> np.ndarray:
        start = {} if image is None else {"image": torch.from_numpy(image).movedim(-1, 0)[None], "strength": STRENGTH}
        return np.asarray(
            pipe(
                prompts[number], num_inference_steps=steps, output_type="np", **arguments, **place.call, **start,
                generator=torch.Generator().manual_seed(1000 + number),
            ).images[0]
        )  # fmt: skip

    images: list[Any] = [None] * count
    if place.image:
        own, pipe = pipe, FluxImg2ImgPipeline(**pipe.components)
        pipe.set_progress_bar_config(disable=True)
        images = [
            np.asarray(own(text, num_inference_steps=28, output_type="np", **arguments).images[0])
            for text in [*prompts[1:], prompts[0]]
        ]
    refused, values, plain, alone, report = False, list[float](), list[float](), 0, None
    fulls = list[np.ndarray]()
    handle = adaptcache.attach(pipe, schedule)
    for number, image in enumerate(images):
        with handle.paused():
            full = made(number, place.steps, image)
            fulls.append(full)
        try:
            cached = made(number, place.steps, image)
        except ScheduleError:
            handle.close()
            refused, handle = True, adaptcache.attach(pipe, schedule, allow=("guidance",))
            cached = made(number, place.steps, image)
        report = handle.report()
        alone += "computed steps" in report.unlike
        with handle.paused():
            fewer = made(number, steps_for(len(report.computed), place), image)
        values.append(psnr(cached, full))
        plain.append(psnr(fewer, full))
    handle.close()
    assert report is not None
    theory = list[float]()
    with adaptcache.attach(pipe, speed=len(report.calls) / len(report.computed)) as instant:
        for number, image in enumerate(images):
            theory.append(psnr(made(number, place.steps, image), fulls[number]))
    made_instant = len(instant.report().computed)
    other = f", {made_instant} calls" * (made_instant != len(report.computed))
    says = f"refused; if allowed, {report.evidence}" if refused else report.evidence
    ours, theirs, toy = summary(values), summary(plain), summary(theory)
    return [
        place.name, f"{len(report.computed)} of {len(report.calls)}", f"{ours['mean']:.1f} ({ours['p05']:.1f})",
        f"{theirs['mean']:.1f} ({theirs['p05']:.1f})", f"{toy['mean']:.1f} ({toy['p05']:.1f})" + other, says,
        f"{alone} of {count}",
        "yes" if "together" in report.unlike or ("at " in report.unlike and alone > count / 2) else "no",
    ]  # fmt: skip


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--schedule", type=Path, default=Path("schedules/emoji-flux-32-28-2.8x.json"))
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--only", help="Rows whose name has this in it.")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # what the report says is what is looked at
    preset, schedule = resolve("emoji-flux-32"), Schedule.load(options.schedule)
    columns = (
        "where",
        "calls",
        "schedule, dB",
        "plain steps, dB",
        "instant, dB",
        "evidence",
        "unlike, alone",
        "together",
    )
    print("|", " | ".join(columns), "|", flush=True)
    print("|" + "---|" * len(columns))
    for place in PLACES:
        if options.only and options.only not in place.name:
            continue
        pipe = preset.load_pipeline("cpu").to(place.dtype)
        pipe.set_progress_bar_config(disable=True)
        print("|", " | ".join(tried(pipe, schedule, place, preset.call, options.prompts)), "|", flush=True)


if __name__ == "__main__":
    main()
