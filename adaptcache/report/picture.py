"""Pictures of results, of sound too: full run, cached runs and their differences, a row a prompt."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..files import write_image, write_sound

GAP, HEAD, CAPTION = 8, 60, 190  # pixels
LEAST = 160  # small images are enlarged to about this size
FRAMES = 5  # of a clip are shown
SPECTRUM = (160, 96)  # pixels of a spectrogram, time and frequency
GAIN = 4  # by which differences are amplified
FAINTEST = 60.0  # decibels below full scale: black


def side_by_side(prompts: Sequence[str], columns: Mapping[str, Sequence[np.ndarray]], path: str | Path) -> Path:
    """Draws a row for each prompt: the columns, then the difference of each from the first, amplified.

    Arguments:
        columns: Images by heading, one a prompt, the full run's first, with values in [0, 1] and shape (H, W, 3);
            clips with shape (F, H, W, 3), of which some frames are shown; or sounds with values in [-1, 1] and
            shape (channels, samples).
    """
    clips = next(iter(columns.values()))[0].ndim == 4
    table = {heading: [strip(image) for image in images] for heading, images in columns.items()}
    (_, truth), *others = table.items()
    for heading, images in others:
        table[f"{heading}:\ndifference x {GAIN:g}"] = [
            np.clip(np.abs(a - b) * GAIN, 0, 1) for a, b in zip(truth, images, strict=True)
        ]
    height, width = truth[0].shape[:2]
    scale = max(1, math.ceil((LEAST / 2 if clips else LEAST) / (height if clips else max(height, width))))
    height, width = height * scale, width * scale
    size = (CAPTION + len(table) * (width + GAP), HEAD + len(prompts) * (height + GAP))
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for column, (heading, images) in enumerate(table.items()):
        left = CAPTION + column * (width + GAP)
        draw.text((left, HEAD - GAP), _wrapped(heading, width), fill="black", font=font, anchor="ld")
        for line, image in enumerate(images):
            tile = Image.fromarray(to_pixels(image))
            sheet.paste(tile.resize((width, height), Image.Resampling.NEAREST), (left, HEAD + line * (height + GAP)))
    for line, prompt in enumerate(prompts):
        text = "\n".join(textwrap.wrap(prompt, 24)[: height // 18])
        draw.text((GAP, HEAD + line * (height + GAP)), text, fill="black", font=font)
    return write_image(path, sheet)


def _wrapped(heading: str, width: int) -> str:
    """Returns a heading as lines that fit a column of a width in pixels, three at most."""
    lines = [part for line in heading.splitlines() for part in textwrap.wrap(line, width // 7)]
    return "\n".join(lines[:3])


def to_pixels(image: np.ndarray) -> np.ndarray:
    """Returns values in [0, 1] as bytes."""
    return (image.clip(0, 1) * 255).round().astype(np.uint8)


def strip(output: np.ndarray) -> np.ndarray:
    """Returns some frames of a clip side by side, the spectrogram of a sound, an image as it is."""
    if output.ndim == 2:
        return spectrogram(output)
    if output.ndim != 4:
        return output
    chosen = np.linspace(0, len(output) - 1, min(FRAMES, len(output))).round().astype(int)
    return np.concatenate(output[chosen], axis=1)


def spectrogram(sound: np.ndarray) -> np.ndarray:
    """Returns how loud which frequency is when: an image with shape (H, W, 3), low notes at the bottom.

    The sound has values in [-1, 1] and shape (channels, samples).
    """
    from scipy.signal import stft

    window = int(np.clip(sound.shape[-1] // 8, 16, 2048))
    _, _, values = stft(sound.mean(axis=0), nperseg=window, noverlap=3 * window // 4)
    loud = 20 * np.log10(np.maximum(2 * np.abs(values), 1e-9))  # of a sine of full scale: 0 dB
    grey = Image.fromarray(np.clip(1 + loud[::-1] / FAINTEST, 0, 1).astype(np.float32))
    return np.repeat(np.asarray(grey.resize(SPECTRUM, Image.Resampling.BOX))[..., None], 3, axis=-1)


def save_output(output: np.ndarray, path: str | Path, rate: int | None = None) -> Path:
    """Writes an image with shape (H, W, C), a clip (F, H, W, C) as an animation, or a sound (channels, samples).

    A sound, with `rate` samples a second, goes into a .wav file, and into any other as its spectrogram.
    """
    if Path(path).suffix.lower() == ".wav":
        if output.ndim != 2 or rate is None:
            raise ValueError(f"an output of shape {output.shape} is no sound; use an ending such as .png")
        return write_sound(path, output, rate)
    output = spectrogram(output) if output.ndim == 2 else output
    frames = to_pixels(output)
    if frames.ndim == 3:
        return write_image(path, Image.fromarray(frames.squeeze(-1) if frames.shape[-1] == 1 else frames))
    return write_image(path, [Image.fromarray(frame) for frame in frames])
