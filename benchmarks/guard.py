"""What the guard notices, and whether a slower schedule does more with the calls: `python -m benchmarks.guard`.

Runs the demo model by shipped schedules, with its own weights and with noise added to them: the fastest with and
without the guard, slower ones without. Prints mean calls and decibels against the full run of the same weights.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

import adaptcache
from adaptcache.evaluation.metrics import psnr
from adaptcache.presets import read_prompts, resolve
from adaptcache.schedule.schedule import Schedule

SCHEDULES = ("4x", "2.8x", "2x")


def shake(pipe: Any, level: float) -> None:
    """Adds noise to the matrices of the denoiser, relative to their standard deviations."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in pipe.transformer.parameters():
            if weight.ndim > 1:
                weight += level * weight.std() * torch.randn(weight.shape, generator=generator)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--levels", type=float, nargs="+", default=[0.0, 0.3, 0.7, 1.5])
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # that the weights are others is the point
    preset = resolve("emoji-flux-32")
    pipe, prompts = preset.load_pipeline("cpu"), read_prompts(preset.prompts).held_out[: options.prompts]
    pipe.set_progress_bar_config(disable=True)

    def made(number: int) -> np.ndarray:
        noise = torch.Generator().manual_seed(1000 + number)
        result = pipe(prompts[number], num_inference_steps=28, output_type="np", generator=noise, **preset.call)
        return np.asarray(result.images[0])

    tried = [(SCHEDULES[0], False), (SCHEDULES[0], True), *((name, False) for name in SCHEDULES[1:])]
    names = [f"{name}{', guard' if guard else ''}: calls, dB" for name, guard in tried]
    print("| noise | runs with an alarm |", " | ".join(names), "|\n|" + "---|" * (2 + len(names)), flush=True)
    kept = {name: value.clone() for name, value in pipe.transformer.state_dict().items()}
    for level in options.levels:
        shake(pipe, level)
        full, cells, alarms = [made(number) for number in range(len(prompts))], list[str](), 0
        for name, guard in tried:
            schedule = Schedule.load(Path("schedules") / f"emoji-flux-32-28-{name}.json")
            rows = []
            with adaptcache.attach(pipe, schedule, guard=guard) as handle:
                for number, truth in enumerate(full):
                    rows.append((psnr(made(number), truth), handle.report().made))
                    alarms += "guard" in handle.report().why
            decibels, calls = np.mean(rows, axis=0)
            cells.append(f"{calls:.1f}, {decibels:.1f}")
        print(f"| {level:g} | {alarms} of {len(full)} |", " | ".join(cells), "|", flush=True)
        pipe.transformer.load_state_dict(kept)


if __name__ == "__main__":
    main()
