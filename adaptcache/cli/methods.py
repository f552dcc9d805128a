"""`adaptcache methods`: what can be named, and what each needs."""

from __future__ import annotations

import json as json_
from dataclasses import asdict
from typing import Any

__all__ = ["methods"]


def methods(json: bool = False) -> None:
    """Lists the published methods: site, policy, forecast, and whether they must be calibrated."""
    from rich.console import Console
    from rich.table import Table

    from ..methods import METHODS, published

    rows: dict[str, dict[str, Any]] = {}
    for name, method in METHODS.items():
        models = list(published(method.published)) if method.published else []
        rows[name] = asdict(method) | {"models": models}
    if json:
        print(json_.dumps(rows, indent=2))
        return
    table = Table("method", "kind", "site", "policy", "forecast", "needs", "paper")
    for name, row in rows.items():
        needs = f"profile, or {len(row['models'])} models" if row["needs"] == "model" else row["needs"]
        paper = row["paper"].removeprefix("https://").removeprefix("arxiv.org/abs/")
        table.add_row(name, row["kind"], row["site"], row["policy"], row["forecast"], needs, paper)
    Console().print(table)
