"""What an export is: a file for another engine, and what a person has to know about it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from ..files import write_atomically
from .mask import Mask

__all__ = ["Exported"]


@dataclass(frozen=True)
class Exported:
    """A schedule in the form of another engine.

    Arguments:
        engine: The engine.
        ending: The ending of the file's name.
        text: The content of the file.
        use: How the file is used; `{path}` stands for where it is.
        mask: Which steps the engine computes by it; None where it decides during the run.
        lost: What the engine cannot do that the schedule does.
        expects: What the run must be like.
    """

    engine: str
    ending: str
    text: str
    use: str
    mask: Mask | None
    lost: tuple[str, ...]
    expects: tuple[str, ...]

    def save(self, path: str | Path) -> Path:
        """Writes the file."""
        return write_atomically(path, self.text.encode())

    def explained(self, path: str | Path = "") -> str:
        """Returns what to know about it, in a few lines, with `path` in place of the file's name."""
        mask, lines = self.mask, []
        if mask is not None:
            lines.append(f"{mask.strip}  {mask.calls} of {mask.steps} steps computed")
            if mask.expected is not None and math.isfinite(mask.expected):
                lines.append(
                    f"predicted  {mask.expected:.1f} dB in the final latents, by the schedule's kernel"
                )
        lines += [f"expects    {what}" for what in self.expects]
        lines += [f"lost       {what}" for what in self.lost]
        name = str(path) or f"schedule{self.ending}"
        return "\n".join([*lines, "", self.use.replace("{path}", name)])
