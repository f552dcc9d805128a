"""`adaptcache models`"""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from ..presets import Preset, names
from .screen import out, print_json

__all__ = ["models"]


def models(json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the presets that --model knows; it also takes a folder or a hub id.

    Example:  adaptcache models
    """
    presets = [Preset.load(name) for name in names()]
    if json:
        print_json([preset.model_dump() for preset in presets])
        return
    view = Table(box=None, header_style="bold")
    for heading in ("preset", "steps", "checkpoint", ""):
        view.add_column(heading, justify="right" if heading == "steps" else "left")
    for preset in presets:
        gated = " (ask for access first)" if preset.gated else ""
        view.add_row(preset.name, str(preset.steps), preset.checkpoint, preset.about + gated)
    out.print(view)
