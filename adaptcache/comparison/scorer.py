"""Whether images still show what their captions say: a small classifier for the demo model's captions.

`calibration.demo.scorer` trains it on the drawings that the demo model was trained on. It knows which of the
common emoji is drawn, and on which background; what is blurred or two at once it takes for neither.
"""

import importlib.util
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn

from ..runs import Prompt

CAPTION = re.compile(r"(?P<name>.+) noto style (?P<background>\w+) background")
WIDTHS = (16, 32, 64, 96)
EMBEDDING = 64


class Scorer(nn.Module):
    """Recognises names and backgrounds of 32 x 32 pictures."""

    def __init__(self, names: Sequence[str], backgrounds: Sequence[str]) -> None:
        super().__init__()
        self.names, self.backgrounds = list(names), list(backgrounds)
        layers: list[nn.Module] = []
        for before, width in zip((3, *WIDTHS[:-1]), WIDTHS, strict=True):
            stride = 1 if before == 3 else 2
            layers += [nn.Conv2d(before, width, 3, stride, 1), nn.GroupNorm(8, width), nn.SiLU()]
        spoiled = 1  # a name more: blurred pictures, and two at once
        # Not pooled to one value: where something is drawn tells as much as what
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.name = nn.Sequential(
            nn.Linear(4 * WIDTHS[-1], EMBEDDING), nn.SiLU(), nn.Linear(EMBEDDING, len(self.names) + spoiled)
        )
        self.background = nn.Linear(4 * WIDTHS[-1], len(self.backgrounds))

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Returns scores of names and of backgrounds, for pictures with shape (B, 3, 32, 32) in [-1, 1]."""
        features = self.body(pictures)
        return self.name(features), self.background(features)

    @torch.no_grad()
    def caption_score(self, prompts: Sequence[Prompt], images: Sequence[np.ndarray]) -> float:
        """Returns the share of images whose first guesses, name and background, are the caption's.

        Images have shape (32, 32, 3) and values in [0, 1], one a caption that it knows.
        """
        pictures = torch.from_numpy(np.stack(images)).float().movedim(-1, 1).clamp(0, 1) * 2 - 1
        names, backgrounds = (scores.argmax(1).tolist() for scores in self(pictures))
        known = [*self.names, None]
        guesses = [(known[a], self.backgrounds[b]) for a, b in zip(names, backgrounds, strict=True)]
        return float(np.mean([guess == named(p) for guess, p in zip(guesses, prompts, strict=True)]))

    def knows(self, prompts: Sequence[Prompt]) -> bool:
        """Whether it can recognise what all these captions ask for."""
        pairs = [named(prompt) for prompt in prompts]
        return all(pair and pair[0] in self.names and pair[1] in self.backgrounds for pair in pairs)


def named(prompt: Prompt) -> tuple[str, str] | None:
    """Returns the emoji and the background that a caption asks for."""
    found = CAPTION.fullmatch(prompt) if isinstance(prompt, str) else None
    return (found["name"], found["background"]) if found else None


def load_scorer(path: str | Path) -> Scorer:
    """Reads a scorer that `calibration.demo.scorer` wrote, in float32."""
    with safe_open(str(path), framework="pt") as file:
        about: dict[str, Any] = json.loads(file.metadata()["about"])
        weights = {name: file.get_tensor(name).float() for name in file.keys()}
    scorer = Scorer(about["names"], about["backgrounds"])
    scorer.load_state_dict(weights)
    return scorer.eval()


CaptionScore = Callable[[Sequence[Prompt], Sequence[np.ndarray]], float]
CLIP = "openai/clip-vit-base-patch16"
SCORER = Path("emoji-scorer", "scorer.safetensors")  # beside the demo model


def find_caption_score(folder: Path | None, prompts: Sequence[Prompt]) -> tuple[CaptionScore | None, str, str]:
    """Finds a measure of how well images show their captions: the demo model's own scorer, or a local CLIP.

    Returns the measure or None, its name, and why there is none.
    """
    if folder and (path := folder.parent / SCORER).is_file():
        scorer = load_scorer(path)
        if scorer.knows(prompts):
            return scorer.caption_score, "share shown", ""
        return None, "", "the demo model's scorer does not know what these prompts ask for"
    if importlib.util.find_spec("torchmetrics") is None:
        return None, "", "needs torchmetrics: pip install 'adaptcache-diffusers[metrics]'"
    if not all(isinstance(prompt, str) for prompt in prompts):
        return None, "", "these prompts are no text"
    try:
        return load_clip_score(), "CLIPScore", ""
    except (ImportError, OSError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        return None, "", f"{CLIP} is not on this machine ({reason[:80]})"


def load_clip_score() -> CaptionScore:
    """Returns CLIPScore, from weights that are on this machine already.

    References:
        Hessel et al., 2021, https://arxiv.org/abs/2104.08718
    """
    from torchmetrics.multimodal.clip_score import CLIPScore
    from transformers import CLIPModel, CLIPProcessor

    model = CLIPModel.from_pretrained(CLIP, local_files_only=True)
    processor = CLIPProcessor.from_pretrained(CLIP, local_files_only=True)
    metric = CLIPScore(lambda: (model, processor))

    def caption_score(prompts: Sequence[Prompt], images: Sequence[np.ndarray]) -> float:
        frames = [image if image.ndim == 3 else image[len(image) // 2] for image in images]
        pixels = [torch.from_numpy((frame.clip(0, 1) * 255).round()).byte().movedim(-1, 0) for frame in frames]
        metric.reset()
        metric.update(pixels, [str(prompt) for prompt in prompts])
        return float(metric.compute())

    return caption_score
