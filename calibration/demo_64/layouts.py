"""Pictures: an icon somewhere on a shaded background, differently each time."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ..demo.data import BACKGROUNDS
from .motifs import withheld

SIZE = 64  # height and width of a picture
SCALES = (0.62, 0.95)
TURN = math.radians(10)
SHADE = 0.1  # of the background's brightness, from its middle to an edge


@dataclass
class Layouts:
    """Draws pictures of icons on the device that these are on.

    Attributes:
        icons: Bytes with shape (n, 4, 2 * SIZE, 2 * SIZE), straight alpha.
        dice: What is drawn depends on it alone.
    """

    icons: Tensor
    dice: torch.Generator

    def backgrounds(self, which: Tensor) -> Tensor:
        """Choose a background for each icon, but never the one withheld from it."""
        others = torch.randint(1, len(BACKGROUNDS), which.shape, generator=self.dice, device=which.device)
        return (withheld(which) + others) % len(BACKGROUNDS)

    def draw(self, which: Tensor, backgrounds: Tensor) -> Tensor:
        """Draw one picture an icon, scaled, turned and moved, but never out of the picture.

        Args:
            which: Numbers of icons with shape (n,).
            backgrounds: Numbers of backgrounds with shape (n,).

        Returns:
            Pictures with shape (n, 3, SIZE, SIZE) in [-1, 1].
        """
        icons = self.icons[which].float() / 255
        icons[:, :3] *= icons[:, 3:]
        grid = functional.affine_grid(self._placement(len(which)), list(icons.shape), align_corners=False)
        icons = functional.grid_sample(icons, grid, align_corners=False)
        icons = functional.avg_pool2d(icons, icons.shape[-1] // SIZE)
        return 2 * (icons[:, :3] + self._paper(backgrounds) * (1 - icons[:, 3:])) - 1

    def _uniform(self, low: float, high: float, count: int) -> Tensor:
        return torch.empty(count, device=self.icons.device).uniform_(low, high, generator=self.dice)

    def _placement(self, count: int) -> Tensor:
        """Draw the maps from picture to icon, with shape (count, 2, 3)."""
        scale, angle = self._uniform(*SCALES, count), self._uniform(-TURN, TURN, count)
        across, down = (self._uniform(-1, 1, count) * (1 - scale) for _ in range(2))
        cos, sin = angle.cos() / scale, angle.sin() / scale
        rows = [cos, -sin, sin * down - cos * across, sin, cos, -sin * across - cos * down]
        return torch.stack(rows, dim=1).unflatten(1, (2, 3))

    def _paper(self, backgrounds: Tensor) -> Tensor:
        """Fill pictures with a colour that grows lighter in some direction, in [0, 1]."""
        colours = torch.tensor(list(BACKGROUNDS.values()), device=backgrounds.device)[backgrounds] / 255
        towards = self._uniform(0, 2 * math.pi, len(backgrounds))[:, None, None]
        ramp = torch.linspace(-1, 1, SIZE, device=backgrounds.device)
        shade = SHADE * (towards.cos() * ramp + towards.sin() * ramp[:, None])
        return (colours[:, :, None, None] * (1 + shade[:, None])).clamp(0, 1)
