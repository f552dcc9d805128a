"""`adaptcache methods`"""

from dataclasses import asdict

from rich.text import Text

from . import options as opt
from .screen import new_table, out, print_json, print_whole

WHOLE = 160  # columns of the whole table


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
