"""Puts a kernel for each class of processors into a wheel, where there is a compiler.

The kernels know neither torch nor Python, so one wheel serves every version of both. Without a
compiler the wheel is one of Python alone, which compiles the kernel on the user's machine.
FOVEAL_WHEEL=pure asks for such a wheel, and FOVEAL_WHEEL=native refuses to make one.
"""

from __future__ import annotations

import os
import platform
import runpy
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FLAGS = "src/foveal/ops/native/flags.py"
BUILT = "foveal/ops/native/built"
ARM = ("aarch64", "arm64")
MACOS = platform.system() == "Darwin"


class KernelHook(BuildHookInterface):
    """Compiles the kernels, and names the platform in the wheel's tag."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        wish = os.environ.get("FOVEAL_WHEEL", "")
        if wish not in ("", "pure", "native"):
            raise ValueError(f"FOVEAL_WHEEL must be pure, native or empty, got {wish!r}.")
        if version == "editable" or wish == "pure":
            return
        about = runpy.run_path(str(Path(self.root) / FLAGS))
        compiler = os.environ.get("CXX") or next(filter(shutil.which, about["COMPILERS"]), None)
        if compiler is None and not wish:
            return
        if compiler is None:
            raise ValueError(
                "FOVEAL_WHEEL=native needs a C++ compiler; install one or name it in CXX."
            )
        self._folder = tempfile.TemporaryDirectory()
        for wanted in classes(about):
            try:
                made = compiled(shlex.split(compiler), wanted, about, Path(self._folder.name))
            except (OSError, subprocess.CalledProcessError) as error:
                if wish:
                    raise
                self.app.display_warning(f"no kernel for {wanted} in this wheel: {error}")
                continue
            build_data["force_include"][str(made)] = f"{BUILT}/{made.name}"
            build_data["pure_python"] = False
        if not build_data["pure_python"]:
            build_data["tag"] = f"py3-none-{tag()}"


def classes(about: dict[str, Any]) -> list[str]:
    """Classes of processors that run programs of the wheel's machine."""
    if machine() in ARM:
        return ["aarch64"]
    return [name for name in about["CLASSES"] if name != "aarch64"]


def compiled(compiler: list[str], wanted: str, about: dict[str, Any], folder: Path) -> Path:
    """The library of a class, under the name by which it is found."""
    part, draft = folder / "part.o", folder / "draft.so"
    oldest = [f"-mmacosx-version-min={macos()}"] if MACOS else []
    ways = [(threads, lean) for threads in about["THREADING"] for lean in (True, False)]
    for threads, lean in ways:
        flags = [*oldest, *about["flags_for"](wanted, threads, lean)]
        command = [*compiler, *flags, "-c", str(about["SOURCE"]), "-o", str(part)]
        if subprocess.run(command, check=(threads, lean) == ways[-1]).returncode == 0:
            break
    # without the name of OpenMP's library: the kernel takes the one that torch has loaded
    linked = [*oldest, "-Wl,-x"] if MACOS else ["-s"]
    subprocess.run(
        [*compiler, "-shared", "-pthread", *linked, str(part), "-o", str(draft)], check=True
    )
    key = about["key_for"](wanted, threads, platform.system(), machine())
    return draft.rename(folder / about["name_for"](key, draft))


def machine() -> str:
    """What the wheel is for, as the machine calls itself.

    _PYTHON_HOST_PLATFORM=linux-aarch64, with a compiler for it in CXX, makes a wheel of another's.
    """
    named = sysconfig.get_platform().rpartition("-")[2]
    return platform.machine() if named == "universal2" else named


def macos() -> str:
    """The oldest macOS that the wheel is for: that of torch's first wheels for such machines."""
    named = os.environ.get("MACOSX_DEPLOYMENT_TARGET") or "11.0"
    return named if "." in named else f"{named}.0"


def tag() -> str:
    """The platform of the wheel, before auditwheel or delocate say how far it goes."""
    system = sysconfig.get_platform().rpartition("-")[0]
    if MACOS:  # not that of the interpreter, which may run on older ones and on two machines
        system = f"macosx_{macos()}"
    return f"{system}_{machine()}".replace("-", "_").replace(".", "_")
