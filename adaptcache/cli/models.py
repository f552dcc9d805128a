"""`adaptcache models`"""

from . import options as opt
from .screen import new_table, out, print_json


def models(json: opt.Json = False) -> None:
    """List the presets that --model knows; it also takes a folder or a hub id.

    Example:  adaptcache models
    """
    from ..presets import Preset, names

    presets = [Preset.load(name) for name in names()]
    if json:
        print_json([preset.model_dump() for preset in presets])
        return
    view = new_table("preset", "steps", "checkpoint", "", right=["steps"], whole=["steps"])
    for preset in presets:
        gated = " (ask for access first)" if preset.gated else ""
        view.add_row(preset.name, str(preset.steps), preset.checkpoint, preset.about + gated)
    out.print(view)
