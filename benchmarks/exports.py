"""How good exports are in their own engines: `python -m benchmarks.exports [--prompts 8] [--write]`.

The shipped schedules of the demo model, exported to stock diffusers and to cache-dit, and run there on
held-out prompts: calls planned and made, the error of the final latents as the kernel predicts it and as it
is, and the decoded images against the full run. `--write` puts the table into docs/engines.md.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import adaptcache
from adaptcache.engines.formats import apply_export, export
from adaptcache.evaluation.metrics import psnr
from adaptcache.presets import Preset, resolve
from adaptcache.presets.prompts import read_prompts
from adaptcache.schedule.schedule import Schedule

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "engines.md"
HEAD = "| schedule | engine | calls planned | made | latents, predicted | latents, measured | images |"
BETWEEN = re.compile(r"(<!-- by benchmarks\.exports -->\n).*?(<!-- end -->)", re.S)

ENGINES = ("diffusers", "cache-dit", "adaptcache")

Made = tuple[list[torch.Tensor], list[np.ndarray]]  # final latents and decoded images, one a prompt


def generate(pipe: Any, preset: Preset, prompts: list[str], first: int) -> Made:
    """Runs prompts one by one and keeps the final latents besides the images."""
    latents, images = list[torch.Tensor](), list[np.ndarray]()

    def keep(_: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == preset.steps - 1:
            latents.append(tensors["latents"].clone())
        return tensors

    for number, prompt in enumerate(prompts):
        noise = torch.Generator("cpu").manual_seed(first + number)
        made = pipe(
            prompt, num_inference_steps=preset.steps, generator=noise, output_type="np",
            callback_on_step_end=keep, **preset.call,
        )  # fmt: skip
        images.append(made.images[0])
    return latents, images


def count_passes(pipe: Any, run: Callable[[], Made]) -> tuple[Made, int]:
    """Runs and counts the passes of the second block's attention: engines always run the first block."""
    passes = [0]

    def count(*_: Any) -> None:
        passes[0] += 1

    hook = pipe.transformer.transformer_blocks[1].attn.register_forward_hook(count)
    try:
        return run(), passes[0]
    finally:
        hook.remove()


def row_of(cells: list[str], made: Made, full: Made) -> str:
    """Returns a row of the table."""
    error = np.mean([float((a - b).square().sum() / b.square().sum()) for a, b in zip(made[0], full[0], strict=True)])
    quality = np.mean([psnr(a, b) for a, b in zip(made[1], full[1], strict=True)])
    return "| " + " | ".join([*cells, f"{-10 * np.log10(error):.1f} dB", f"{quality:.1f} dB"]) + " |"


def measure(pipe: Any, engine: str, schedule: Schedule, run: Callable[[], Made], full: Made) -> str:
    """Returns the row of a schedule in one engine."""
    if engine == "adaptcache":
        with adaptcache.attach(pipe, schedule) as handle:
            made, passes = count_passes(pipe, run)
        planned, predicted = handle.report().made, ""
    else:
        exported = export(schedule, engine)
        assert exported.plan is not None and exported.plan.expected is not None
        with apply_export(pipe, exported):
            made, passes = count_passes(pipe, run)
        planned, predicted = exported.plan.calls, f"{exported.plan.expected:.1f} dB"
    return row_of([schedule.name, engine, str(planned), f"{passes / len(made[0]):g}", predicted], made, full)


def fewest_last(schedule: Schedule) -> int:
    """Returns minus the calls a schedule makes: most calls first."""
    evidence = schedule.evidence
    return -evidence.calls[0] if evidence else 0


def main() -> None:
    """Measures every shipped schedule in every engine that runs here."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--write", action="store_true", help="put the table into docs/engines.md")
    arguments = parser.parse_args()
    preset = resolve("emoji-flux-32")
    known = read_prompts(preset.prompts)
    pipe = preset.load_pipeline("cpu")
    pipe.set_progress_bar_config(disable=True)
    prompts = list(known.held_out[: arguments.prompts])

    def run() -> Made:
        return generate(pipe, preset, prompts, len(known.calibration))

    full = run()
    schedules = sorted(map(Schedule.load, (ROOT / "schedules").glob("emoji-flux-32-*.json")), key=fewest_last)
    table = [HEAD, re.sub(r"[^|]+", "---", HEAD)]
    for schedule in schedules:
        for engine in ENGINES:
            table.append(measure(pipe, engine, schedule, run, full))
            print(table[-1], flush=True)
    if arguments.write:
        text = PAGE.read_text(encoding="utf-8")
        assert BETWEEN.search(text)
        PAGE.write_text(BETWEEN.sub("\\1" + "\n".join(table) + "\n\\2", text), encoding="utf-8")


if __name__ == "__main__":
    main()
