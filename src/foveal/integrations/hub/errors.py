"""What goes wrong between here and the Hub, in one line that says what to do."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from foveal.common.inputs import reason
from foveal.common.packages import need
from foveal.common.words import shorten

LOG_IN = "log in with: hf auth login (or pass token=)"


@contextlib.contextmanager
def talking(repo: str, revision: str | None = None, here: str = "") -> Iterator[None]:
    """Calls of huggingface_hub about a repository: their errors become ours, in one line.

    Args:
        here: what to say first of a name that may be meant for something on this machine.

    Raises:
        ValueError: the name, or what was sent, cannot be.
        FileNotFoundError: there is no such repository, revision or file.
        PermissionError: the Hub refuses.
        ConnectionError: the Hub cannot be reached, or the connection broke.
    """
    try:
        yield
    except Exception as error:
        found = _in_words(error, repo, revision, here)
        if found is None:
            raise
        raise found from error


def endpoint() -> str:
    """The address of the Hub that is asked."""
    return str(need("huggingface_hub", "the Hub").constants.ENDPOINT)


def _in_words(error: Exception, repo: str, revision: str | None, here: str) -> Exception | None:
    """The error to raise for one of huggingface_hub, or None where it may pass as it is."""
    errors: Any = need("huggingface_hub.errors", "the Hub")
    at = f"{repo} at revision {revision!r}" if revision else repo
    if isinstance(error, errors.HFValidationError):
        return ValueError(f"{repo!r} cannot be the name of a model on the Hub: {_line(error)}")
    if isinstance(error, errors.GatedRepoError):
        return PermissionError(
            f"{repo} is gated: ask for access at {endpoint()}/{repo}, and {LOG_IN}."
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return FileNotFoundError(
            f"{here}there is no model {repo!r} on the Hub ({endpoint()}); if it is private, "
            f"{LOG_IN}."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return FileNotFoundError(
            f"{repo} has no branch, tag or commit {revision!r} on the Hub ({endpoint()})."
        )
    if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, FileNotFoundError):
        return None  # of a file, which whoever asked for it explains
    if isinstance(error, errors.LocalEntryNotFoundError):
        return _not_kept(error, at)
    if isinstance(error, errors.LocalTokenNotFoundError):
        return PermissionError(f"the Hub must know who asks for {repo}; {LOG_IN}.")
    if isinstance(error, errors.OfflineModeIsEnabled):
        return ConnectionError(f"the Hub may not be asked about {at}, since HF_HUB_OFFLINE=1.")
    if isinstance(error, errors.HfHubHTTPError):
        return _refused(error, at)
    if isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):  # of an upload
        within = _in_words(error.__cause__, repo, revision, here)
        if within is not None:
            return within
    return _broken(error, at, errors)


def _not_kept(error: Exception, at: str) -> Exception:
    """Nothing could be asked, and it was not downloaded before."""
    errors: Any = need("huggingface_hub.errors", "the Hub")
    cause = error.__cause__
    if isinstance(cause, errors.HfHubHTTPError):
        return _refused(cause, at)
    if cause is None or isinstance(cause, errors.OfflineModeIsEnabled):
        return FileNotFoundError(
            f"{at} has not been downloaded before, and nothing may be downloaded now "
            "(local_files_only=True, or HF_HUB_OFFLINE=1)."
        )
    return ConnectionError(
        f"the Hub ({endpoint()}) cannot be reached ({_line(cause)}), and {at} has not been "
        "downloaded before."
    )


def _refused(error: Any, at: str) -> Exception:
    """An answer of the Hub that is no success."""
    status, said = error.response.status_code, _said(error)
    if status == 401:
        return PermissionError(f"the Hub ({endpoint()}) does not accept the token; {LOG_IN}.")
    if status == 403:
        return PermissionError(f"the Hub ({endpoint()}) forbids this for {at}{said}; {LOG_IN}.")
    if status in (400, 409, 412, 413, 422):
        return ValueError(f"the Hub ({endpoint()}) does not take this for {at}{said}.")
    if status == 429:
        return ConnectionError(f"the Hub ({endpoint()}) is asked too often; wait a little{said}.")
    return ConnectionError(
        f"the Hub ({endpoint()}) answers with status {status} for {at}{said}; try again later."
    )


def _said(error: Any) -> str:
    """The words of the server, as an addition to ours."""
    said = error.server_message or error.response.headers.get("X-Error-Message")
    return f" ({shorten(str(said), 160).rstrip('.')})" if said else ""


def _broken(error: Exception, at: str, errors: Any) -> Exception | None:
    """What is no answer: a connection that broke, a file that came in part, a full disk."""
    if isinstance(error, OSError) and error.errno is not None:
        return None  # of this machine, with its file
    # transport errors of whatever client huggingface_hub uses are of the class that its own are of
    transport = errors.HfHubHTTPError.__bases__
    if isinstance(error, (*transport, RuntimeError)):
        root = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
        return ConnectionError(
            f"the connection to the Hub ({endpoint()}) broke for {at} ({_line(root)}); try again."
        )
    return ValueError(_line(error)) if isinstance(error, ValueError) else None


def _line(error: BaseException) -> str:
    said = reason(error) if isinstance(error, ValueError | OSError) else str(error)
    return shorten(said, 240) or type(error).__name__
