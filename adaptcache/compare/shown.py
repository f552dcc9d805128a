"""What tells whether images show their captions: the demo model's own scorer, CLIP where a user has it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ..call import Prompt
from .scorer import load_scorer

__all__ = ["Shows", "shows_for"]

Shows = Callable[[Sequence[Prompt], Sequence[np.ndarray]], float]
CLIP = "openai/clip-vit-base-patch16"
SCORER = Path("emoji-scorer", "scorer.safetensors")  # beside the demo model


def shows_for(folder: Path | None, prompts: Sequence[Prompt]) -> tuple[Shows | None, str, str]:
    """Finds a measure of how well images show their captions that needs no download.

    Arguments:
        folder: The folder of the model, None for one of the hub.
        prompts: The captions.

    Returns:
        The measure or None; its name; and why there is none.
    """
    if folder and (path := folder.parent / SCORER).is_file():
        scorer = load_scorer(path)
        if scorer.knows(prompts):
            return scorer.shown, "share shown", ""
        return None, "", "the demo model's scorer does not know what these prompts ask for"
    if importlib.util.find_spec("torchmetrics") is None:
        return None, "", "needs torchmetrics: pip install 'adaptcache-diffusers[metrics]'"
    if not all(isinstance(prompt, str) for prompt in prompts):
        return None, "", "these prompts are no text"
    try:
        return clip_score(), "CLIPScore", ""
    except (ImportError, OSError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        return None, "", f"{CLIP} is not on this machine ({reason[:80]})"


def clip_score() -> Shows:
    """Returns CLIPScore, from weights that are on this machine already.

    References:
        Hessel et al., 2021, https://arxiv.org/abs/2104.08718
    """
    import torch
    from torchmetrics.multimodal.clip_score import CLIPScore
    from transformers import CLIPModel, CLIPProcessor

    model = CLIPModel.from_pretrained(CLIP, local_files_only=True)
    processor = CLIPProcessor.from_pretrained(CLIP, local_files_only=True)
    metric = CLIPScore(lambda: (model, processor))

    def shown(prompts: Sequence[Prompt], images: Sequence[np.ndarray]) -> float:
        frames = [image if image.ndim == 3 else image[len(image) // 2] for image in images]
        pixels = [
            torch.from_numpy((frame.clip(0, 1) * 255).round()).byte().movedim(-1, 0) for frame in frames
        ]
        metric.reset()
        metric.update(pixels, [str(prompt) for prompt in prompts])
        return float(metric.compute())

    return shown
