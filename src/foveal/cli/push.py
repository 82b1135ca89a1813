"""`foveal push RUN user/name`: the model of a run on the Hub, with a card that says what it is."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from foveal.cli.parsing import parse


@dataclass(kw_only=True)
class Options:
    """Upload a run's model to the Hub in one commit, with a card of its data, scores and command.

    Of paths only the names are told. Log in first: hf auth login.

    Attributes:
        run: the run's folder, or "latest".
        repo: "user/name" on the Hub; made if there is none.
        private: make it private; one that is there must be so already.
        revision: the branch, made if there is none; the main branch unless given.
        message: of the commit.
        license: as the Hub calls it, such as mit or apache-2.0.
        description: what the model is for; for the card.
        create_pr: open a pull request in place of a commit.
        json: print repository, commit and address as JSON.
    """

    run: Annotated[str, tyro.conf.Positional]
    repo: Annotated[str, tyro.conf.Positional]
    private: bool = False
    revision: str | None = None
    message: str | None = None
    license: str | None = None
    description: str | None = None
    create_pr: bool = False
    json: bool = False


def main(arguments: list[str]) -> int:
    """Upload a model, and print where it is."""
    options = parse(Options, arguments, "push")
    from foveal.common.packages import need
    from foveal.models import Model
    from foveal.recipes.runs import open_model, open_run

    need("huggingface_hub", "foveal push")
    run = open_run(options.run)
    model, checkpoint = open_model(run, "cpu")
    if not isinstance(model, Model):
        raise ValueError(f"the run {run.folder} trains no model of foveal; it cannot be pushed.")
    about = {name: getattr(options, name) for name in ("license", "description")}
    commit: Any = model.push_to_hub(
        options.repo,
        private=options.private or None,
        commit_message=options.message,
        revision=options.revision,
        create_pr=options.create_pr,
        run=run.folder,
        **{name: text for name, text in about.items() if text is not None},
    )
    found = {"repo": commit.repo_url.repo_id, "commit": commit.oid, "checkpoint": checkpoint}
    found["url"] = str(commit.pr_url or commit.commit_url)
    print(json.dumps(found, indent=2) if options.json else found["url"])
    return 0
