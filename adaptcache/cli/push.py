"""`adaptcache push`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..hub import push_to_hub, save_pretrained
from .screen import out
from .source import Source, loaded

__all__ = ["push"]


def push(
    schedule: Source,
    to: Annotated[
        str, typer.Argument(help="A repository of the hub (user/repo), or a folder (./mine, /mine).")
    ],
    name: Annotated[
        str | None,
        typer.Option(help="Tells schedules of one place apart. \\[default: the one without a name]"),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="The branch to put it on.")] = None,
    private: Annotated[bool | None, typer.Option("--private/--public", help="Of a new repository.")] = None,
    create_pr: Annotated[bool, typer.Option(help="Ask for a review instead of committing.")] = False,
    message: Annotated[str | None, typer.Option(help="What the commit says.")] = None,
) -> None:
    """Put a schedule and a model card on the hub, or into a folder in the same form.

    Log in before with: hf auth login

    Examples:

      adaptcache push schedules/flux-28-2.8x.json me/flux-schedules

      adaptcache push schedules/flux-28-4x.json me/flux-schedules --name fast

      adaptcache push schedules/flux-28-2.8x.json ./flux-schedules
    """
    pushed = loaded(schedule)
    if to.startswith((".", "/", "~")) or Path(to).is_dir():
        path = save_pretrained(pushed, Path(to).expanduser(), name=name)
        out.print(f"wrote {path} and its model card")
        return
    address = push_to_hub(
        pushed, to, name=name, revision=revision, private=private, create_pr=create_pr, message=message
    )
    out.print(f"pushed to {address}")
