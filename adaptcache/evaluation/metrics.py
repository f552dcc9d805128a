"""How close images are to those of the full run."""

import importlib.util
from collections.abc import Sequence

import numpy as np

CEILING = 100.0  # decibels given to identical images, so that means stay finite


def psnr(image: np.ndarray, truth: np.ndarray) -> float:
    """Returns the peak signal-to-noise ratio in decibels, at most 100.

    Arguments:
        image: Values in [0, 1], of any shape: an image, or all frames of a clip. Of sound, whose values are
            in [-1, 1], an error of full scale (a peak of 1) counts as 0 dB too.
        truth: The same of the full run.
    """
    error = float(np.mean((image.astype(np.float64) - truth.astype(np.float64)) ** 2))
    return CEILING if error == 0 else min(CEILING, -10 * float(np.log10(error)))


def psnr_each(images: Sequence[np.ndarray], truth: Sequence[np.ndarray]) -> list[float]:
    """Returns the decibels of each image against its full run."""
    return [psnr(*pair) for pair in zip(images, truth, strict=True)]


def check_images(images: Sequence[np.ndarray], first: int, run: str) -> None:
    """Raises where an image is not finite: stored as numbers it would be black, and count as a match."""
    for number, image in enumerate(images, start=first):
        if not np.isfinite(image).all():
            raise ValueError(
                f"the image of prompt {number} from {run} has values that are not finite: "
                "load the pipeline in bfloat16 or float32, or leave the prompt out"
            )


def score_images(images: Sequence[np.ndarray], truth: Sequence[np.ndarray], first: int, run: str) -> list[float]:
    """Returns the decibels of each image of a run, of prompt `first` and those after it, against the full run.

    Raises:
        ValueError: An image is not finite; it says which, and of which run.
    """
    check_images(images, first, run)
    return psnr_each(images, truth)


def ssim(image: np.ndarray, truth: np.ndarray) -> float:
    """Returns the mean structural similarity over frames. Needs `adaptcache-diffusers[metrics]`.

    Arguments:
        image: Values in [0, 1], with shape (H, W, C) or (F, H, W, C).
        truth: The same of the full run.

    References:
        Wang et al., 2004, https://doi.org/10.1109/TIP.2003.819861
    """
    import torch
    from torchmetrics.functional.image import structural_similarity_index_measure

    a, b = (torch.from_numpy(part.reshape(-1, *part.shape[-3:])).movedim(-1, 1).float() for part in (image, truth))
    return float(structural_similarity_index_measure(a, b, data_range=1.0))  # type: ignore[arg-type]


def ssim_of(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, float] | None:
    """Returns the summary of structural similarities; None for sound, or without the extra `metrics`."""
    pictures = pairs[0][0].ndim >= 3 and importlib.util.find_spec("torchmetrics") is not None
    return summary([ssim(a, b) for a, b in pairs]) if pictures else None


def summary(values: list[float]) -> dict[str, float]:
    """Returns the mean and the 5th percentile: what most prompts get, and what the unlucky ones get."""
    return {"mean": float(np.mean(values)), "p05": float(np.percentile(values, 5))}
