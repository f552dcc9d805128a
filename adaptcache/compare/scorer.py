"""Does an image still show what its caption says? A small classifier tells, for the demo model's captions.

`calibration.demo.scorer` trains it on the drawings that the demo model was trained on. It knows which of the
common emoji is drawn, and on which background; and what is blurred or two at once it takes for neither.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn

from ..call import Prompt

__all__ = ["Scorer", "load_scorer"]

CAPTION = re.compile(r"(?P<name>.+) noto style (?P<background>\w+) background")
WIDTHS = (16, 32, 64, 96)
EMBEDDING = 64


class Scorer(nn.Module):
    """Tells names and backgrounds of 32 x 32 pictures.

    Arguments:
        names: What can be drawn.
        backgrounds: The colours it can be drawn on.
    """

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
    def shown(self, prompts: Sequence[Prompt], images: Sequence[np.ndarray]) -> float:
        """Returns the share of images whose first guesses, name and background, are the caption's.

        Arguments:
            prompts: Captions that it knows.
            images: One a caption, with shape (32, 32, 3) and values in [0, 1].
        """
        pictures = torch.from_numpy(np.stack(images)).float().movedim(-1, 1).clamp(0, 1) * 2 - 1
        names, backgrounds = (scores.argmax(1).tolist() for scores in self(pictures))
        known = [*self.names, None]
        guesses = [(known[a], self.backgrounds[b]) for a, b in zip(names, backgrounds, strict=True)]
        return float(np.mean([guess == named(p) for guess, p in zip(guesses, prompts, strict=True)]))

    def knows(self, prompts: Sequence[Prompt]) -> bool:
        """Whether it can tell what all these captions ask for."""
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
