"""What mkdocs does besides: lists the decisions, stands in for figures, renders the notebooks,
writes the explorer."""

import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

PERFORMANCE = "performance.md"
UNMEASURED = """\
# Performance

Nothing has been published yet. `python benchmarks/verify.py` writes this page from the results of
`python benchmarks/run.py`, provided that all tests pass; `foveal bench` measures your machine.
"""


def on_config(config: Any) -> Any:
    """In the navigation, "decisions/" becomes the pages of that folder, in their order."""
    config.nav = _expand(config.nav, Path(config.docs_dir))
    return config


def _expand(item: Any, docs: Path) -> Any:
    if isinstance(item, list):
        return [_expand(one, docs) for one in item]
    if isinstance(item, dict):
        return {title: _expand(one, docs) for title, one in item.items()}
    if item.endswith("/"):
        return [page.relative_to(docs).as_posix() for page in sorted((docs / item).glob("*.md"))]
    return item


def on_files(files: Files, config: Any) -> Files:
    """Pages that are made: docs/performance.md where there is none yet, and one a notebook.

    The notebooks themselves lie beside their pages, to be downloaded.
    """
    if files.get_file_from_path(PERFORMANCE) is None:
        files.append(File.generated(config, PERFORMANCE, content=UNMEASURED))
    sys.path.insert(0, config.docs_dir)
    from notebook_pages import page_of

    for path in sorted((Path(config.docs_dir) / "notebooks").glob("*.ipynb")):
        page, pictures = page_of(path)
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=page))
        for name, picture in pictures.items():
            files.append(File.generated(config, f"notebooks/{name}", content=picture))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """In a row of a table GitHub wants \\| for |, which the site would show as it stands."""
    return re.sub(r"^\|.*", lambda row: row[0].replace(r"\|", "|"), markdown, flags=re.MULTILINE)


def on_post_build(config: Any) -> None:
    """The pattern explorer, which the front page shows, with tables of this checkout."""
    from foveal.explore.page import page

    (Path(config.site_dir) / "explore.html").write_text(page(), encoding="utf-8")
