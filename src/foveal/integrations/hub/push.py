"""Uploading a model in one commit: the repository has all of it or nothing."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foveal.common.files import write_text
from foveal.common.lazy import provided
from foveal.common.packages import need
from foveal.integrations.hub.card import MARK, Card, write_card
from foveal.integrations.hub.errors import talking
from foveal.models.config import check_keywords
from foveal.models.storage import save_model
from foveal.version import __version__

CARD = "README.md"
RUN_FILES = ("run.json", "classes.json", "num_tokens.json", "tokenizer.json")
"""What a repository may have of a run; what is there of an earlier one goes with its weights."""


def push(
    model: Any,
    repo_id: str,
    *,
    private: bool | None = None,
    commit_message: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    create_pr: bool = False,
    run: str | Path | None = None,
    about: Mapping[str, Any] | None = None,
) -> Any:
    """Upload a model; see `foveal.models.Model.push_to_hub`.

    Args:
        about: keywords of `Card`; they win over what the run tells.
    """
    hub: Any = need("huggingface_hub", "push_to_hub")
    about = dict(about or {})
    check_keywords("push_to_hub", about, list(Card.__dataclass_fields__))
    files: dict[str, str] = {}
    if run is not None:
        of_run, files = provided("publish_run")(run)
        about = {**of_run, **about}
    card = Card(**about)
    api = hub.HfApi(token=token, library_name="foveal", library_version=__version__)
    with tempfile.TemporaryDirectory(prefix="foveal-") as home:
        folder = Path(home)
        save_model(model, folder)
        for name, text in files.items():
            write_text(folder / name, text)
        repo = _open(api, repo_id, private, create_pr)
        with talking(repo, revision):
            if revision is not None and not revision.startswith("refs/") and not create_pr:
                api.create_branch(repo, branch=revision, exist_ok=True)
            there = api.list_repo_files(repo, revision=revision)
        if CARD not in there or _is_ours(api, repo, revision, folder / "cache", bool(about)):
            write_text(folder / CARD, write_card(model, repo, card))
        with talking(repo, revision):
            return api.create_commit(
                repo,
                _operations(hub, folder, there),
                commit_message=commit_message or f"Upload {type(model).__name__} with foveal",
                revision=revision,
                create_pr=create_pr,
            )


def _operations(hub: Any, folder: Path, there: list[str]) -> list[Any]:
    """What a commit does: add the files of a folder, and take away those of an earlier run."""
    ours = sorted(path for path in folder.iterdir() if path.is_file())
    stale = sorted(set(RUN_FILES) & set(there) - {path.name for path in ours})
    adds = [hub.CommitOperationAdd(path_in_repo=path.name, path_or_fileobj=path) for path in ours]
    return adds + [hub.CommitOperationDelete(path_in_repo=name) for name in stale]


def _open(api: Any, repo: str, private: bool | None, create_pr: bool) -> str:
    """Make the repository, if it is not there; its full name.

    Raises:
        ValueError: it is there, and others than was asked for can see it.
    """
    with talking(repo):
        if not create_pr:  # a request is made to a repository that others own
            repo = api.create_repo(repo, private=private, exist_ok=True).repo_id
        found = None if private is None else bool(api.model_info(repo).private)
    if found != private:
        now, wanted = ("private", "public") if found else ("public", "private")
        raise ValueError(
            f"{repo} is there and {now}, but private={private} asks for a {wanted} one; nothing "
            "was uploaded. Change it on its page, or name another."
        )
    return repo


def _is_ours(api: Any, repo: str, revision: str | None, cache: Path, tells: bool) -> bool:
    """Whether we have written the card that is there; somebody's own is not replaced.

    Args:
        tells: the new card would say something that the old one may not.
    """
    with talking(repo, revision):
        path = api.hf_hub_download(repo, CARD, revision=revision, cache_dir=cache)
    ours = MARK in Path(path).read_text(encoding="utf-8", errors="replace")
    if tells and not ours:
        warnings.warn(
            f"{CARD} of {repo} is not foveal's, and was left as it is; delete it there for a new "
            "one.",
            stacklevel=4,
        )
    return ours
