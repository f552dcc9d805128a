"""Schedules in folders and on the Hugging Face hub, in the manner of diffusers' configurations.

A folder holds one schedule as `adaptcache_config.json`, further ones as `<name>/adaptcache_config.json`,
a model card and its plot.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download

from ..files import write_atomically
from ..schedule.schedule import Schedule
from .card import card
from .errors import HubError, explained
from .plot import plot

__all__ = ["CONFIG", "from_pretrained", "push_to_hub", "save_pretrained"]

CONFIG, CARD, PLOT = "adaptcache_config.json", "README.md", "plot.png"


def save_pretrained(
    schedule: Schedule, folder: str | Path, *, name: str | None = None, repo: str | None = None
) -> Path:
    """Writes a schedule into a folder, and the card and plot of all schedules there.

    Arguments:
        schedule: The schedule.
        folder: The folder; what else is in it stays.
        name: Tells schedules of one folder apart; None is the default one.
        repo: What the card says it is loaded from; None says the folder's name.

    Returns:
        The file of the schedule.
    """
    folder = Path(folder)
    if folder.is_file():
        raise NotADirectoryError(f"{folder} is a file; give a folder to save into")
    path = schedule.save(folder / _location(name))
    found = {file.parent.name: file for file in folder.glob(f"*/{CONFIG}")} | (
        {"": folder / CONFIG} if (folder / CONFIG).is_file() else {}
    )
    before = (folder / CARD).read_text(encoding="utf-8") if (folder / CARD).is_file() else ""
    schedules = {key: Schedule.load(file) for key, file in found.items()}
    text = card(schedules, repo or folder.name, before)
    write_atomically(folder / PLOT, plot(schedules))
    write_atomically(folder / CARD, text.encode())
    return path


def from_pretrained(
    source: str | Path,
    name: str | None = None,
    *,
    revision: str | None = None,
    subfolder: str = "",
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Schedule:
    """Loads a schedule from a folder or the hub.

    Arguments:
        source: A folder, a file, or a repository of the hub ("user/repo").
        name: Which schedule of it; None takes the default one.
        revision: A branch, tag or commit of the repository; a commit pins it for ever.
        subfolder: Where in it the schedules are.
        token: What to log in with; None takes what `hf auth login` left.
        cache_dir: Where downloads are kept.
        local_files_only: Use what is on this machine and ask nobody.

    Raises:
        HubError: It cannot be had; the message says why and what helps.
        ScheduleError: What is there is no schedule.
    """
    where = _location(name, subfolder)
    local = Path(source).expanduser()
    if local.is_file():
        return Schedule.load(local)
    if local.is_dir():
        if not (local / where).is_file():
            raise HubError(f"{local} has no {where}{_others(str(p) for p in _configs(local))}")
        return Schedule.load(local / where)
    with explained(str(source), where, revision, missing=lambda: _listed(str(source), revision, token)):
        path = hf_hub_download(
            str(source), where, revision=revision, token=token, cache_dir=cache_dir,
            local_files_only=local_files_only, library_name="adaptcache",
        )  # fmt: skip
    return Schedule.load(path)


def push_to_hub(
    schedule: Schedule,
    repo: str,
    *,
    name: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    private: bool | None = None,
    message: str | None = None,
    create_pr: bool = False,
) -> str:
    """Puts a schedule and its card into a repository of the hub, which is created where there is none.

    Arguments:
        schedule: The schedule.
        repo: The repository ("user/repo").
        name: Tells schedules of one repository apart; None is the default one.
        revision: The branch to put it on.
        token: What to log in with; None takes what `hf auth login` left.
        private: Whether a new repository is private; None leaves that to the account.
        message: What the commit says.
        create_pr: Ask for a review instead of committing.

    Returns:
        The address of the commit.
    """
    api = HfApi(token=token, library_name="adaptcache")
    with tempfile.TemporaryDirectory() as folder, explained(repo, "", revision):
        api.create_repo(repo, private=private, exist_ok=True)
        for file in api.list_repo_files(repo, revision=revision):
            if file == CARD or (Path(file).name == CONFIG and len(Path(file).parts) <= 2):
                # The card speaks of all schedules of the repository.
                hf_hub_download(repo, file, revision=revision, token=token, local_dir=folder)
        save_pretrained(schedule, folder, name=name, repo=repo)
        done = api.upload_folder(
            repo_id=repo, folder_path=folder, revision=revision, create_pr=create_pr,
            allow_patterns=[_location(name), CARD, PLOT],
            commit_message=message or f"Upload {schedule.name} with adaptcache",
        )  # fmt: skip
    return str(done.pr_url if create_pr else done.commit_url)


def _location(name: str | None, subfolder: str = "") -> str:
    parts = [part for part in (subfolder, name) if part]
    if any(".." in Path(part).parts or Path(part).is_absolute() for part in parts):
        raise ValueError(f"{'/'.join(parts)!r} leads out of the folder; give a plain name")
    return "/".join([*parts, CONFIG])


def _configs(folder: Path) -> Iterator[Path]:
    return (path.relative_to(folder) for path in sorted(folder.rglob(CONFIG)))


def _others(files: Iterator[str]) -> str:
    names = [file for file in files if Path(file).name == CONFIG]
    return f"; it has {', '.join(names)}: choose with name=" if names else "; it holds no schedules"


def _listed(repo: str, revision: str | None, token: str | bool | None) -> str:
    api = HfApi(token=token, library_name="adaptcache")
    return _others(iter(api.list_repo_files(repo, revision=revision)))
