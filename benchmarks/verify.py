"""Publish what was measured, but only of code whose tests pass.

    python benchmarks/verify.py [--check]

Runs the test suite, once for each implementation forced and once with deterministic algorithms,
and writes docs/performance.md from benchmarks/results. A red test means that nothing is written.
--check only says whether the page fits the results.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from report import page

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "performance.md"

SETTINGS: list[dict[str, str]] = [
    {},
    {"FOVEAL_IMPL": "native"},
    {"FOVEAL_IMPL": "tiled"},
    {"FOVEAL_IMPL": "reference"},
    {"FOVEAL_DETERMINISTIC": "1"},
]
"""Environments of the test runs; tests/conftest.py reads FOVEAL_DETERMINISTIC."""


def tests_pass() -> bool:
    for setting in SETTINGS:
        said = " ".join(f"{name}={value}" for name, value in setting.items()) or "as it is"
        print(f"tests, {said} ...", flush=True)
        command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist", "worksteal"]
        if subprocess.run(command, cwd=ROOT, env={**os.environ, **setting}).returncode:
            print(f"tests fail ({said}): nothing is published.", file=sys.stderr)
            return False
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare only")
    args = parser.parse_args()
    text = page()
    if args.check:
        fits = PAGE.exists() and PAGE.read_text("utf-8") == text
        print("docs/performance.md fits the results" if fits else "docs/performance.md is stale")
        return 0 if fits else 1
    if not tests_pass():
        return 1
    PAGE.write_text(text, "utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
