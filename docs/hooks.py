"""What mkdocs does besides: a page for figures that have not been measured yet."""

from typing import Any

from mkdocs.structure.files import File, Files

PERFORMANCE = "performance.md"
UNMEASURED = """\
# Performance

Nothing has been published yet. `python benchmarks/verify.py` writes this page from the results of
`python benchmarks/run.py`, provided that all tests pass; `foveal bench` measures your machine.
"""


def on_files(files: Files, config: Any) -> Files:
    """docs/performance.md is generated; the site can be built before it is."""
    if files.get_file_from_path(PERFORMANCE) is None:
        files.append(File.generated(config, PERFORMANCE, content=UNMEASURED))
    return files
