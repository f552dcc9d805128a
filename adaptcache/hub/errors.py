"""Why a schedule cannot be had from the hub, or not be put there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

__all__ = ["HubError", "explained"]

HTTP: type[Exception] = HfHubHTTPError.__bases__[0]  # a time-out is an HTTP library's own error


class HubError(OSError):
    """A schedule that cannot be had from the hub, or not be put there."""


@contextmanager
def explained(
    repo: str, where: str, revision: str | None, missing: Callable[[], str] = lambda: ""
) -> Iterator[None]:
    """Turns the errors of the hub into a `HubError` of one line each.

    Arguments:
        repo: The repository.
        where: The file that is wanted; "" where it is none in particular.
        revision: The revision that is wanted.
        missing: Asked for what to say besides where the repository has no such file.
    """
    login = "log in: hf auth login"
    try:
        yield
    except HFValidationError:
        raise HubError(f"{repo!r} is neither a folder, a file nor a repository (user/repo)") from None
    except GatedRepoError as error:
        raise HubError(f"{repo} is gated; request access on its page of the hub and {login}") from error
    except RepositoryNotFoundError as error:
        raise HubError(f"the hub has no {repo}, or it is private; check the name, or {login}") from error
    except RevisionNotFoundError as error:
        raise HubError(f"{repo} has no revision {revision!r}") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise HubError(
            f"{where or 'the list of files'} of {repo} is not on this machine and the hub is not asked or "
            "not reached; connect, or give a folder"
        ) from error
    except EntryNotFoundError as error:
        raise HubError(f"{repo} has no {where}{missing()}") from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "?"
        why = f"; {login}, with a token that may write" if status in (401, 403) else ""
        raise HubError(f"the hub refuses {repo} (status {status}){why}") from error
    except HTTP as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise HubError(f"the hub cannot be reached for {repo}: {reason}") from error
