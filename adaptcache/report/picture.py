"""Pictures of results: full run, cached run and their difference, a row a prompt."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..files import write_image

__all__ = ["save_output", "side_by_side", "strip"]

GAP, HEAD, CAPTION = 8, 26, 190  # pixels
LEAST = 160  # small images are enlarged to about this size
FRAMES = 5  # of a clip are shown


def side_by_side(
    prompts: Sequence[str], columns: Mapping[str, Sequence[np.ndarray]], path: str | Path, gain: float = 8.0
) -> Path:
    """Draws a row for each prompt: the columns, then the difference of the last two times `gain`.

    Arguments:
        prompts: The captions.
        columns: Images by heading, one a prompt, with values in [0, 1] and shape (H, W, 3), or clips
            with shape (F, H, W, 3), of which some frames are shown.
        path: The PNG file.
        gain: By how much differences are amplified.
    """
    clips = next(iter(columns.values()))[0].ndim == 4
    columns = {heading: [strip(image) for image in images] for heading, images in columns.items()}
    truth, cached = list(columns.values())[-2:]
    difference = [np.clip(np.abs(a - b) * gain, 0, 1) for a, b in zip(truth, cached, strict=True)]
    table = {**columns, f"difference x {gain:g}": difference}
    height, width = truth[0].shape[:2]
    scale = max(1, round((LEAST / 2 if clips else LEAST) / (height if clips else max(height, width))))
    height, width = height * scale, width * scale
    size = (CAPTION + len(table) * (width + GAP), HEAD + len(prompts) * (height + GAP))
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for column, (heading, images) in enumerate(table.items()):
        left = CAPTION + column * (width + GAP)
        draw.text((left, 5), heading, fill="black", font=font)
        for line, image in enumerate(images):
            tile = Image.fromarray((image.clip(0, 1) * 255).round().astype(np.uint8))
            sheet.paste(
                tile.resize((width, height), Image.Resampling.NEAREST), (left, HEAD + line * (height + GAP))
            )
    for line, prompt in enumerate(prompts):
        text = "\n".join(textwrap.wrap(prompt, 24)[: height // 18])
        draw.text((GAP, HEAD + line * (height + GAP)), text, fill="black", font=font)
    return write_image(path, sheet)


def strip(output: np.ndarray) -> np.ndarray:
    """Returns some frames of a clip with shape (F, H, W, C) side by side; an image as it is."""
    if output.ndim != 4:
        return output
    chosen = np.linspace(0, len(output) - 1, min(FRAMES, len(output))).round().astype(int)
    return np.concatenate(output[chosen], axis=1)


def save_output(output: np.ndarray, path: str | Path) -> Path:
    """Writes an image with shape (H, W, C), or a clip with shape (F, H, W, C) as an animation.

    Raises:
        ValueError: It is neither: sound is written by the pipeline's own tools.
    """
    frames = (output.clip(0, 1) * 255).round().astype(np.uint8)
    if frames.ndim == 3:
        return write_image(path, Image.fromarray(frames.squeeze(-1) if frames.shape[-1] == 1 else frames))
    if frames.ndim == 4:
        return write_image(path, [Image.fromarray(frame) for frame in frames])
    raise ValueError(f"cannot draw an output of shape {output.shape}; attach the schedule in Python instead")
