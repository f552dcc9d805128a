"""Short clips with captions: Noto emoji that move before a coloured background."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from ..demo.data import BACKGROUNDS, SIZE, load_emoji
from ..demo.focus import best_known_names

HERE = Path(__file__).parent
FRAMES = 9
RENDERED = 64  # pixels of the pictures that are moved, turned and made smaller
FINER = 2  # pixels across that are averaged into one
Path4 = tuple[Tensor, Tensor, Tensor, Tensor]  # x, y (1 = half the width), size (1 = the whole width), turn


def _still(u: Tensor, size: float) -> Tensor:
    return torch.full_like(u, size)


# What happens from u = 0 to u = 1. Two random numbers a and b in [-1, 1] make clips of one caption differ.
MOTIONS: dict[str, Callable[[Tensor, Tensor, Tensor], Path4]] = {
    "moving left": lambda u, a, b: (0.8 * (0.5 - u) + 0.06 * a, 0.2 * b + 0 * u, _still(u, 0.62), 0 * u),
    "moving right": lambda u, a, b: (0.8 * (u - 0.5) + 0.06 * a, 0.2 * b + 0 * u, _still(u, 0.62), 0 * u),
    "growing": lambda u, a, b: (0.06 * a + 0 * u, 0.06 * b + 0 * u, 0.3 + 0.6 * u, 0 * u),
    "shrinking": lambda u, a, b: (0.06 * a + 0 * u, 0.06 * b + 0 * u, 0.9 - 0.6 * u, 0 * u),
    "spinning": lambda u, a, b: (0 * u, 0 * u, 0.75 + 0.05 * b + 0 * u, 1.5 * math.pi * u + 0.3 * a),
    "bouncing": lambda u, a, b: (
        0.2 * b + 0 * u,
        0.35 - 0.7 * torch.sin(1.5 * math.pi * u + 0.25 * a).abs(),
        _still(u, 0.62),
        0 * u,
    ),
}


@dataclass(frozen=True)
class Scenes:
    """What clips show, as numbers of names, colours and motions.

    Args:
        emoji: Numbers of `names()`, with shape (n,).
        colours: Numbers of `BACKGROUNDS`, with shape (n,).
        motions: Numbers of `MOTIONS`, with shape (n,).
        chance: Two numbers in [-1, 1] for each clip, with shape (n, 2).
    """

    emoji: Tensor
    colours: Tensor
    motions: Tensor
    chance: Tensor

    @classmethod
    def draw(cls, n: int, generator: torch.Generator) -> "Scenes":
        """Draw scenes at random."""
        sizes = (len(names()), len(BACKGROUNDS), len(MOTIONS))
        picks = [torch.randint(size, (n,), generator=generator) for size in sizes]
        return cls(*picks, 2 * torch.rand(n, 2, generator=generator) - 1)

    def part(self, first: int, last: int) -> "Scenes":
        """Return the scenes from `first` to before `last`."""
        return Scenes(*(rows[first:last] for rows in (self.emoji, self.colours, self.motions, self.chance)))

    def captions(self) -> list[str]:
        """Return what the clips show, in words."""
        rows = zip(self.emoji.tolist(), self.motions.tolist(), self.colours.tolist(), strict=True)
        return [caption(names()[e], list(MOTIONS)[m], list(BACKGROUNDS)[c]) for e, m, c in rows]


def caption(name: str, motion: str, background: str) -> str:
    """Write the caption the model is trained with."""
    return f"{name} {motion} on {background} background"


def names() -> list[str]:
    """List the emoji that appear: those that the image model knows best."""
    return best_known_names()


@cache
def _pictures() -> Tensor:
    """Load the emoji with shape (n, 4, RENDERED, RENDERED), colours multiplied by alpha, in [0, 1]."""
    known, rgba = load_emoji(RENDERED)
    chosen = torch.from_numpy(rgba[[known.index(name) for name in names()]]).movedim(-1, 1)
    return torch.cat([chosen[:, :3] * chosen[:, 3:], chosen[:, 3:]], dim=1)


def paths(scenes: Scenes) -> Tensor:
    """Return where the emoji are: x, y, size and turn, with shape (n, FRAMES, 4)."""
    u, (a, b) = torch.linspace(0, 1, FRAMES), scenes.chance.T[..., None]
    each = [torch.stack(torch.broadcast_tensors(*move(u, a, b)), dim=-1) for move in MOTIONS.values()]
    chosen = [each[motion][row] for row, motion in enumerate(scenes.motions.tolist())]
    return torch.stack(chosen)


def film(scenes: Scenes) -> Tensor:
    """Render clips, with shape (n, 3, FRAMES, SIZE, SIZE) in [-1, 1], as the autoencoder takes them."""
    x, y, size, turn = paths(scenes).flatten(0, 1).T
    cos, sin = turn.cos() / size, turn.sin() / size
    # From a place on the canvas to one in the picture, hence the inverse of the motion.
    rows = [torch.stack([cos, sin, -cos * x - sin * y], -1), torch.stack([-sin, cos, sin * x - cos * y], -1)]
    across = (len(x), 4, SIZE * FINER, SIZE * FINER)
    grid = functional.affine_grid(torch.stack(rows, dim=1), across, align_corners=False)
    shown = _pictures()[scenes.emoji].repeat_interleave(FRAMES, dim=0)
    moved = functional.avg_pool2d(functional.grid_sample(shown, grid, align_corners=False), FINER)
    colours = torch.tensor(list(BACKGROUNDS.values()))[scenes.colours] / 255
    behind = colours.repeat_interleave(FRAMES, dim=0)[:, :, None, None]
    frames = moved[:, :3] + behind * (1 - moved[:, 3:])
    return (2 * frames - 1).unflatten(0, (-1, FRAMES)).movedim(1, 2)
