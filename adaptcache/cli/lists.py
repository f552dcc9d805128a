"""`adaptcache models` and `adaptcache methods`: what can be named."""

from dataclasses import asdict

from rich.text import Text

from . import options as opt
from .screen import new_table, out, print_json, print_whole

WHOLE = 160  # columns of the whole table


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


def methods(json: opt.Json = False) -> None:
    """List the published methods that can be named: policy, forecast, site, and what they need.

    Example:  adaptcache methods
    """
    from ..schedule.methods import METHODS, published_sets

    models = {name: list(published_sets(m.published)) if m.published else [] for name, m in METHODS.items()}
    if json:
        print_json([{"name": name, **asdict(m), "models": models[name]} for name, m in METHODS.items()])
        return
    if out.width < WHOLE:
        view, kind = new_table("method", "fit", "policy", "forecast", "site", whole=("fit", "policy", "forecast")), ""
        for name, method in METHODS.items():
            if kind != (kind := method.kind):
                view.add_row(Text(kind, "bold"))
            view.add_row(name, "yes" if method.needs else "", method.policy, method.forecast, method.sites)
        out.print(view)
        out.print("fit: by calibrate --method. A wider screen, or --json, has the papers too.")
        return
    view = new_table("method", "kind", "site", "policy", "forecast", "needs", "paper")
    for name, method in METHODS.items():
        needs = f"profile, or 1 of {len(models[name])} models" if method.needs == "model" else method.needs
        paper = method.paper.removeprefix("https://").removeprefix("arxiv.org/abs/")
        view.add_row(name, method.kind, method.sites, method.policy, method.forecast, needs, paper)
    print_whole(view)
