"""Downloading a model: two files of one commit, and nothing that would be executed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foveal.common.files import read_json
from foveal.common.packages import need
from foveal.common.words import shorten
from foveal.integrations.hub.errors import endpoint, talking
from foveal.integrations.hub.strangers import whose_config, whose_files
from foveal.models.storage import CONFIG
from foveal.version import __version__


class HubFiles:
    """Where files of a model on the Hub lie on this machine; each is downloaded when asked for.

    All are of one commit, that of the first, also if somebody uploads meanwhile. A file is in the
    cache whole or not at all, and is checked against its SHA-256 where the Hub gives one.

    Args:
        repo: "user/name".
        revision, token, cache_dir, local_files_only, force_download: see
            `foveal.models.load_model`.

    Attributes:
        commit: what the revision means, once a file was asked for.
    """

    def __init__(
        self,
        repo: str,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
    ) -> None:
        here = f"there is no folder {repo!r} here, and opening it from the Hub"
        self._hub: Any = need("huggingface_hub", here)
        self.repo, self.revision = repo, revision
        self.commit: str | None = None
        self._asked: dict[str, Any] = {"token": token, "local_files_only": local_files_only}
        self._asked |= {"cache_dir": cache_dir, "force_download": force_download}
        self._asked |= {"library_name": "foveal", "library_version": __version__}

    def __call__(self, name: str, most: int) -> Path:
        """The path of a file.

        Args:
            name: of the file.
            most: bytes; a larger one is not downloaded.

        Raises:
            FileNotFoundError, PermissionError, ConnectionError: see `talking`.
            ValueError: the repository is none of foveal's, or the file is too large or damaged.
        """
        found = self._ask(name, dry_run=True)
        if (found.file_size or 0) > most:
            raise ValueError(
                f"{name} of {self.repo} has {found.file_size:,} bytes, but at most {most:,} can "
                "belong to such a model; it was not downloaded."
            )
        path = Path(self._ask(name))
        if found.will_download:
            _check_content(path)
        self.commit = self.commit or path.parent.name  # snapshots/COMMIT/NAME
        if name == CONFIG:
            self._check_config(path)
        return path

    def _ask(self, name: str, **options: Any) -> Any:
        """What huggingface_hub says of a file."""
        here = f"there is no folder {self.repo!r} here, and "
        asked = {**self._asked, "revision": self.commit or self.revision, **options}
        try:
            with talking(self.repo, self.revision, here):
                return self._hub.hf_hub_download(self.repo, name, **asked)
        except need("huggingface_hub.errors", "the Hub").EntryNotFoundError as error:
            raise self._lacks(name) from error

    def _check_config(self, path: Path) -> None:
        """Raise ValueError for the model of another package, before its weights are downloaded."""
        try:
            content = read_json(path)
        except ValueError:  # which is told when it is read
            return
        if isinstance(content, Mapping) and "family" not in content:
            raise ValueError(
                f"{self.repo} is no model of foveal{whose_config(content, self.repo)}"
            )

    def _lacks(self, name: str) -> Exception:
        """What to say of a repository without a file that each of foveal's has."""
        api = self._hub.HfApi(token=self._asked["token"])
        with talking(self.repo, self.revision):
            files = api.list_repo_files(self.repo, revision=self.commit or self.revision)
        said = whose_files(files, self.repo)
        return FileNotFoundError(f"{self.repo} on the Hub ({endpoint()}) has no {name}{said}")


def _check_content(path: Path) -> None:
    """Raise ConnectionError, and forget the file, if it is not what the Hub says it is.

    The cache calls a large file by its SHA-256, and has links to it by its name, where links are.
    """
    kept = path.parent / os.readlink(path) if path.is_symlink() else path
    if len(kept.name) != 64:
        return
    with kept.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != kept.name:
        path.unlink()
        kept.unlink()
        raise ConnectionError(
            f"{path.name} arrived damaged (its SHA-256 is {shorten(found, 12)}...); try again."
        )
