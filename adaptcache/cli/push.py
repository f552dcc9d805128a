"""`adaptcache push`"""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from .files import Source, load_schedule, wrote
from .screen import out


def push(
    schedule: Source,
    to: Annotated[str, Argument(help="A repository of the hub (user/repo), or a folder (./mine, /mine).")],
    name: Annotated[str | None, Option(help="Tells schedules of one place apart.")] = None,
    revision: Annotated[str | None, Option(help="The branch to put it on.")] = None,
    private: Annotated[bool | None, Option("--private/--public", help="Of a new repository.")] = None,
    create_pr: Annotated[bool, Option(help="Ask for a review instead of committing.")] = False,
    message: Annotated[str | None, Option(help="What the commit says.")] = None,
) -> None:
    """Put a schedule and a model card on the hub, or into a folder in the same form.

    Log in before with: hf auth login

    \b
    Examples:
      adaptcache push schedules/flux-28-2.8x.json me/flux-schedules
      adaptcache push schedules/flux-28-4x.json me/flux-schedules --name fast
      adaptcache push schedules/flux-28-2.8x.json ./flux-schedules
    """
    from ..hub import CONFIG

    pushed = load_schedule(schedule)
    if to.startswith((".", "/", "~")) or Path(to).is_dir():
        given = {"--revision": revision, "--private/--public": private, "--create-pr": create_pr or None,
                 "--message": message}  # fmt: skip
        if unused := [option for option, value in given.items() if value is not None]:
            raise ValueError(f"{to} is a folder: leave out what is for repositories of the hub: {', '.join(unused)}")
        said = wrote(Path(to).expanduser() / "/".join(filter(None, [name, CONFIG])))
        pushed.save_pretrained(to, name=name)
        out.print(f"{said} and its model card")
        return
    address = pushed.push_to_hub(
        to, name=name, revision=revision, private=private, create_pr=create_pr, message=message
    )
    out.print(f"pushed to {address}")
