"""`adaptcache methods`"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table

from ..schedule.methods import METHODS, published_sets
from .screen import out, print_json

__all__ = ["methods"]


def methods(json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the published methods that can be named: policy, forecast, site, and what they need.

    Example:  adaptcache methods
    """
    models = {name: list(published_sets(m.published)) if m.published else [] for name, m in METHODS.items()}
    if json:
        print_json([{"name": name, **asdict(m), "models": models[name]} for name, m in METHODS.items()])
        return
    view = Table(box=None, header_style="bold")
    for heading in ("method", "kind", "site", "policy", "forecast", "needs", "paper"):
        view.add_column(heading, no_wrap=True)
    for name, method in METHODS.items():
        needs = f"profile, or 1 of {len(models[name])} models" if method.needs == "model" else method.needs
        paper = method.paper.removeprefix("https://").removeprefix("arxiv.org/abs/")
        view.add_row(name, method.kind, method.sites, method.policy, method.forecast, needs, paper)
    out.print(view)
