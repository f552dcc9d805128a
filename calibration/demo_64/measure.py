"""Measure the exported model: `python -m calibration.demo_64.measure`.

How far the held-out prompts' images with few steps are from those with many, how far two seeds of a prompt
are apart, how large the folder is, and how long the denoiser takes.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel

from ..demo.sheet import STEPS
from ..demo.text import T5_TOKENS, WIDTH
from .export import FOLDER
from .model import positions
from .sheet import generate, held_out

FEW = (14, 10, 7, 5)
CALLS = 50


def decibels(images: np.ndarray, others: np.ndarray) -> np.ndarray:
    """PSNR of each image in dB, for a range of [0, 1]."""
    return -10 * np.log10(np.square(images - others).mean(axis=(1, 2, 3)))


def spread(values: np.ndarray) -> str:
    """Say how values in dB are spread."""
    middle = f"mean {values.mean():.1f} dB, median {np.median(values):.1f}"
    return f"{middle}, {values.min():.1f} to {values.max():.1f}"


@torch.no_grad()
def milliseconds(transformer: FluxTransformer2DModel) -> float:
    """Time of one call for one picture: the fastest of some, as other work only ever adds to it."""
    text, image = positions().split([T5_TOKENS, len(positions()) - T5_TOKENS])
    inputs = {
        "hidden_states": torch.randn(1, len(image), transformer.config.in_channels),
        "encoder_hidden_states": torch.randn(1, T5_TOKENS, WIDTH),
        "pooled_projections": torch.randn(1, WIDTH),
        "timestep": torch.tensor([0.5]),
        "txt_ids": text,
        "img_ids": image,
    }
    times = []
    for _ in range(CALLS):
        start = time.perf_counter()
        transformer(**inputs)
        times.append(time.perf_counter() - start)
    return 1000 * min(times)


def main() -> None:
    """Print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    pipeline = FluxPipeline.from_pretrained(options.folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    prompts = held_out()

    def images(steps: int, first_seed: int = 0) -> np.ndarray:
        return np.asarray(generate(pipeline, prompts, steps, first_seed, output_type="np"))

    full = images(STEPS)
    for steps in FEW:
        print(f"{steps} steps against {STEPS}: {spread(decibels(images(steps), full))}")
    print(f"two seeds of a prompt: {spread(decibels(images(STEPS, len(prompts)), full))}")
    size = sum(path.stat().st_size for path in options.folder.rglob("*") if path.is_file())
    print(f"folder: {size / 1e6:.1f} MB")
    spent = milliseconds(pipeline.transformer)
    print(f"one call for one picture: {spent:.1f} ms, threads: {options.threads}")


if __name__ == "__main__":
    main()
