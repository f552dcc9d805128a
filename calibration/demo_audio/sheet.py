"""Contact sheet: spectrograms of twelve sounds by the exported pipeline, in full and by a schedule; and the tuning.

`python -m calibration.demo_audio.sheet` draws it again.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import StableAudioPipeline
from PIL import Image
from torch import Tensor

from adaptcache.evaluation.metrics import psnr
from adaptcache.report.picture import spectrogram

from ..demo.options import sheet_options
from ..demo.sheet import SCHEDULES, full_and_ours, lay_out, stacked
from .export import FOLDER
from .sounds import HERE, RATE, WAYS, frequency

OUTPUT = HERE.parents[1] / "docs" / "images" / "audio-contact-sheet.png"
PROMPTS = HERE.parent / "prompts" / "tones.txt"
SHOWN, COLUMNS, ZOOM = 12, 4, 2
STEPS, GUIDANCE = 50, 3.0
NEAR = 50.0  # cents, half a half tone: closer is in tune


def held_out_prompts() -> list[str]:
    """Read the captions that schedules are not calibrated on."""
    lines = PROMPTS.read_text(encoding="utf-8").split("[held-out]")[1].split("\n")
    return [line for line in lines if line]


def generate(pipeline: StableAudioPipeline, prompts: list[str], **options: object) -> Tensor:
    """Generate one sound a prompt, in one batch, the i-th from seed i: (n, 1, LENGTH)."""
    seeds = [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]
    return pipeline(
        prompts,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        audio_end_in_s=1.0,
        generator=seeds,
        **options,
    ).audios


def cents(sound: Tensor, prompt: str) -> float:
    """Return how far the strongest partial near the note is from it, in the first third of the sound."""
    *_, octave, note, way = prompt.split()
    first, last = (0.1, 0.2) if way in ("rising", "falling") else (0.06, 0.34)  # seconds
    bend, _ = WAYS[way](torch.tensor((first + last) / 2))
    wanted = frequency(octave, note) * float(bend.exp())
    part = sound[0, int(first * RATE) : int(last * RATE)]
    power = torch.fft.rfft(part * torch.hann_window(len(part)), 16 * RATE).abs()
    hertz = torch.arange(len(power)) / 16
    near = (hertz > wanted / 1.35) & (hertz < wanted * 1.35)
    found = float(hertz[near][power[near].argmax()])
    return 1200 * abs(np.log2(found / wanted))


def draw_sheet(folder: Path, output: Path, schedule: Path | None = None) -> None:
    """Generate the sheet from an exported folder.

    Args:
        folder: A StableAudioPipeline folder.
        output: The picture to write.
        schedule: What makes the lower ones; without one, twice the speed from theory does.
    """
    pipeline = StableAudioPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(desc="contact sheet")
    prompts = held_out_prompts()
    sounds, ours = full_and_ours(pipeline, schedule, lambda: generate(pipeline, prompts))
    tuned = sum(cents(sound, prompt) < NEAR for sound, prompt in zip(sounds, prompts, strict=True))
    print(f"{tuned} of {len(prompts)} in tune")
    output.parent.mkdir(parents=True, exist_ok=True)
    pairs = list(zip(sounds.numpy(), ours.numpy(), strict=True))[:SHOWN]
    drawn = [[Image.fromarray((spectrogram(sound) * 255).round().astype(np.uint8)) for sound in two] for two in pairs]
    labels = [f"{prompt}\n{psnr(made, full):.0f} dB" for prompt, (full, made) in zip(prompts, pairs, strict=False)]
    lay_out([stacked(*pair) for pair in drawn], labels, COLUMNS, ZOOM).quantize(256).save(output, optimize=True)


def main() -> None:
    """Draw the sheet of the exported folder."""
    options = sheet_options(
        argparse.ArgumentParser(description=__doc__), FOLDER, OUTPUT, SCHEDULES / "tones-50-2x.json"
    )
    draw_sheet(options.folder, options.output, options.schedule)


if __name__ == "__main__":
    main()
