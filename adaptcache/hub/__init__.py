"""Schedules in folders and on the Hugging Face hub: moves their files, and writes the card beside them.

A folder holds one schedule as `adaptcache_config.json`, further ones as `<name>/adaptcache_config.json`, a
model card and its plot. `huggingface_hub.ModelHubMixin` does not fit: it knows one configuration a
repository and no subfolders, keeps an old card, and sets attributes on objects that are frozen here.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, errors, hf_hub_download

from ..files import locate, write_atomically
from .card import build_card, plot_png

__all__ = ["CONFIG", "HubError", "explain", "find_file", "push_to_hub", "save_pretrained"]

CONFIG, CARD, PLOT = "adaptcache_config.json", "README.md", "plot.png"

LOGIN = "log in: hf auth login"
HTTP: type[Exception] = errors.HfHubHTTPError.__bases__[0]  # the HTTP library's own error, a time-out for instance
REASONS: tuple[tuple[type[Exception] | tuple[type[Exception], ...], str], ...] = (  # the first that fits
    (errors.HFValidationError, "{repo!r} is neither a folder, a file nor a repository (user/repo)"),
    (errors.GatedRepoError, f"{{repo}} is gated; request access on its page of the hub and {LOGIN}"),
    (errors.RepositoryNotFoundError,
     f"the hub has no {{repo}}, or it is private; check the name, or {LOGIN}"),
    (errors.RevisionNotFoundError, "the hub has no such revision: {repo}"),
    ((errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, ConnectionError),
     "{repo} is not on this machine and the hub cannot be reached"),
    (errors.HfHubHTTPError, "the hub refuses {repo}: {reason}{login}"),
    (HTTP, "the hub cannot be reached for {repo}: {reason}"),
)  # fmt: skip


class HubError(OSError):
    """A schedule that cannot be had from the hub, or not be put there."""


def explain(error: BaseException, repo: str) -> str:
    """Returns in one line why the hub did not serve a repository; "" where the error is not the hub's.

    Arguments:
        error: What was raised; errors that it comes from are looked at too, as diffusers hides the hub's.
        repo: The repository, or a file of it in words.
    """
    causes = list(_causes(error))
    for kinds, text in REASONS:
        if found := next((cause for cause in causes if isinstance(cause, kinds)), None):
            reason = next(iter(str(found).splitlines()), type(found).__name__)
            status = getattr(getattr(found, "response", None), "status_code", 0)
            login = f"; {LOGIN}, with a token that may write" if status in (401, 403) else ""
            return text.format(repo=repo, reason=reason, login=login)
    return ""


def save_pretrained(
    schedule: Any, folder: str | Path, load: Callable[[Path], Any], *, name: str | None, repo: str | None
) -> Path:
    """Does `Schedule.save_pretrained`; `load` reads a schedule from its file."""
    folder = locate(folder)
    if folder.is_file():
        raise NotADirectoryError(f"{folder} is a file; give a folder to save into")
    path = folder / _location(name)
    files = [file for file in (folder / CONFIG, *folder.glob(f"*/{CONFIG}")) if file.is_file() and file != path]
    schedules = {"" if file.parent == folder else file.parent.name: load(file) for file in files}
    schedules[name or ""] = schedule
    try:
        before = (folder / CARD).read_text(encoding="utf-8") if (folder / CARD).is_file() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read the card {folder / CARD}: {error}; save it as UTF-8") from None
    plot = plot_png(schedules)
    card = build_card(schedules, repo or folder.resolve().name, before, PLOT if plot else None)
    schedule.save(path)  # not before all that can fail was read
    if plot:
        write_atomically(folder / PLOT, plot)
    write_atomically(folder / CARD, card.encode())
    return path


def find_file(source: str | Path, name: str | None = None, *, subfolder: str = "", **download: Any) -> Path:
    """Returns the file of a schedule for `Schedule.from_pretrained`, downloaded where it is on the hub.

    Arguments:
        download: `revision` (a commit pins it for ever), `token`, `cache_dir`, `local_files_only`: as for
            `huggingface_hub.hf_hub_download`.

    Raises:
        HubError: It cannot be had; the message says why and what helps.
    """
    where, local, repo = _location(name, subfolder), locate(source), str(source)
    if local.is_dir():
        if not (local / where).is_file():  # three levels at most, as `_location` makes them: not the whole of `/`
            levels = (local.glob(f"{'*/' * depth}{CONFIG}") for depth in range(3))
            there = [str(path.relative_to(local)) for level in levels for path in sorted(level)]
            raise HubError(f"{local} has no {where}{_others(there)}")
        return local / where
    if local.exists() or local.suffix == ".json":
        return local
    try:
        return Path(hf_hub_download(repo, where, library_name="adaptcache", **download))
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise HubError(explain(error, f"{where} of {repo}")) from error
    except errors.EntryNotFoundError as error:
        api = HfApi(token=download.get("token"))
        there = api.list_repo_files(repo, revision=download.get("revision"))
        raise HubError(f"{repo} has no {where}{_others(there)}") from error
    except (errors.HFValidationError, HTTP) as error:
        revision = download.get("revision")
        raise HubError(explain(error, f"{repo}@{revision}" if revision else repo)) from error


def push_to_hub(
    save: Callable[[Path], Path], repo: str, *, token: str | bool | None = None, private: bool | None = None,
    revision: str | None = None, **upload: Any,
) -> str:  # fmt: skip
    """Does `Schedule.push_to_hub`, and returns the address of the commit, or of the review that was asked for.

    Arguments:
        save: Writes the schedule, the card and the plot into a folder, and returns the schedule's file.
        upload: `commit_message`, `create_pr`, ...: as for `huggingface_hub.HfApi.upload_folder`.

    Raises:
        HubError: The hub refuses it, or is not reached.
    """
    api = HfApi(token=token, library_name="adaptcache")
    try:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            api.create_repo(repo, private=private, exist_ok=True)
            for file in api.list_repo_files(repo, revision=revision):
                if file == CARD or (Path(file).name == CONFIG and len(Path(file).parts) <= 2):
                    # The card speaks of all schedules of the repository.
                    hf_hub_download(repo, file, revision=revision, token=token, local_dir=folder)
            path = save(folder)
            done = api.upload_folder(
                repo_id=repo, folder_path=folder, revision=revision, **upload,
                allow_patterns=[path.relative_to(folder).as_posix(), CARD, PLOT],
            )  # fmt: skip
    except (errors.HFValidationError, errors.OfflineModeIsEnabled, HTTP) as error:
        raise HubError(explain(error, repo)) from error
    return str(done.pr_url or done.commit_url)


def _location(name: str | None, subfolder: str = "") -> str:
    parts = [part for part in (subfolder, name) if part]
    if any(".." in Path(part).parts or Path(part).is_absolute() for part in parts):
        raise ValueError(f"{'/'.join(parts)!r} leads out of the folder; give a plain name")
    return "/".join([*parts, CONFIG])


def _others(files: Iterable[str]) -> str:
    names = [file for file in files if Path(file).name == CONFIG]
    return f"; it has {', '.join(names)}: choose with name=" if names else "; it holds no schedules"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    # Both links: diffusers raises an OSError from the one while handling the other.
    if error:
        yield error
        yield from _causes(error.__cause__)
        if error.__context__ is not error.__cause__:
            yield from _causes(error.__context__)
