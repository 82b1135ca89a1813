"""What a release is made of agrees with itself; check_wheel.py looks at the wheel."""

from __future__ import annotations

import platform
import re
import runpy
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

import foveal
from foveal.ops.native import flags

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
GITHUB = sorted((ROOT / ".github").rglob("*.yml"))
TARGETS = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


def test_there_is_one_version():
    """The package tells it to the wheel; whoever cites it and the changelog say the same."""
    assert PROJECT["project"]["dynamic"] == ["version"]
    source = (ROOT / PROJECT["tool"]["hatch"]["version"]["path"]).read_text(encoding="utf-8")
    assert f'__version__ = "{foveal.__version__}"' in source
    assert re.fullmatch(r"\d+\.\d+\.\d+", foveal.__version__)
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    released = re.findall(r"^## \[(\d.*?)\] - (\d{4}-\d\d-\d\d)$", changelog, re.MULTILINE)
    assert released[0] == (foveal.__version__, released[0][1])
    assert f"\nversion: {foveal.__version__}\ndate-released: {released[0][1]}\n" in citation


@pytest.mark.parametrize("path", GITHUB, ids=lambda path: path.stem)
def test_what_a_workflow_calls_is_there(path):
    """Workflows and forms can be read; targets of make and files that they name exist."""
    yaml = pytest.importorskip("yaml")
    held = yaml.safe_load(path.read_text(encoding="utf-8"))
    for job in held.get("jobs", {}).values():
        assert job["timeout-minutes"] <= 90
        assert {job.get("needs")} - {None} <= held["jobs"].keys()
        for step in job["steps"]:
            ran = step.get("run", "")
            assert set(re.findall(r"\bmake ([\w-]+)", ran)) <= set(TARGETS)
            for file in re.findall(r"(?<![\w./])(?:src|tests|\.ci)/[\w./]+", ran):
                assert (ROOT / file).exists(), file
    for field in held.get("body", []):
        assert field["attributes"].keys() & {"label", "value"}


def test_the_wheel_is_tried_before_it_goes():
    """cibuildwheel runs a check that exists, on what torch has builds for, and demands kernels."""
    asked = PROJECT["tool"]["cibuildwheel"]
    assert asked["environment"]["FOVEAL_WHEEL"] == "native"
    check = asked["test-command"].split("{project}/")[1].split()[0]
    assert (ROOT / check).exists()
    names = asked["build"].split()
    assert len(names) == len({one.partition("-")[2] for one in names}), "one CPython for each"


@pytest.fixture
def hook(monkeypatch):
    """hatch_build.py as it is on another machine: a function of its name and its system."""

    def load(named: str, system: str = "Linux", machine: str = "x86_64") -> dict:
        interface = ModuleType("hatchling.builders.hooks.plugin.interface")
        interface.BuildHookInterface = object
        for part in ("", ".builders", ".builders.hooks", ".builders.hooks.plugin"):
            monkeypatch.setitem(sys.modules, f"hatchling{part}", ModuleType(f"hatchling{part}"))
        monkeypatch.setitem(sys.modules, interface.__name__, interface)
        monkeypatch.setenv("_PYTHON_HOST_PLATFORM", named)
        monkeypatch.setattr(platform, "system", lambda: system)
        monkeypatch.setattr(platform, "machine", lambda: machine)
        return runpy.run_path(str(ROOT / "hatch_build.py"))

    return load


@pytest.mark.parametrize(
    ("named", "system", "machine", "oldest", "tag"),
    [
        ("linux-x86_64", "Linux", "x86_64", None, "linux_x86_64"),
        ("linux-aarch64", "Linux", "aarch64", None, "linux_aarch64"),
        ("linux-aarch64", "Linux", "x86_64", None, "linux_aarch64"),
        ("macosx-11.0-arm64", "Darwin", "arm64", None, "macosx_11_0_arm64"),
        ("macosx-10.9-universal2", "Darwin", "arm64", None, "macosx_11_0_arm64"),
        ("macosx-10.9-universal2", "Darwin", "arm64", "14", "macosx_14_0_arm64"),
        ("macosx-10.9-universal2", "Darwin", "x86_64", "12.3", "macosx_12_3_x86_64"),
    ],
)
def test_a_wheel_says_what_it_is_for(hook, monkeypatch, named, system, machine, oldest, tag):
    """Also one for another machine, and where the interpreter is for two; its classes fit it."""
    monkeypatch.setenv("MACOSX_DEPLOYMENT_TARGET", oldest or "")
    made = hook(named, system, machine)
    assert made["tag"]() == tag
    arm = tag.endswith(("aarch64", "arm64"))
    classes = made["classes"](vars(flags))
    assert classes == (["aarch64"] if arm else ["avx512+bf16", "avx512", "avx2", "generic"])
