"""What importing costs: modules load with little installed, and `import foveal` with no extras."""

import ast
import importlib
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import foveal

OPTIONAL = [
    "accelerate",
    "diffusers",
    "einops",
    "huggingface_hub",
    "matplotlib",
    "numpy",
    "open_clip",
    "PIL",
    "rich",
    "tensorboard",
    "timm",
    "transformers",
    "triton",
    "tyro",
]
CORE = ("common", "patterns", "ops", "caches", "layers", "models", "generation", "testing")
KERNELS = {"foveal.ops.triton.kernels"}
"""Written in Triton, and imported by the calls that run them."""
ALLOWED = {"foveal", "torch", "safetensors"}
"""Beside Python's own modules, and whatever torch loads by itself."""


def modules() -> list[str]:
    walk = pkgutil.walk_packages(foveal.__path__, "foveal.")
    return [module.name for module in walk if not module.name.endswith("__main__")]


def run(code: str) -> str:
    """Output of a fresh process with the same interpreter and path."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


BLOCK = f"""
import sys, torch  # which may load what it finds

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {OPTIONAL}:
            raise ModuleNotFoundError("not installed: " + name, name=name)

for name in list(sys.modules):
    if name.split(".")[0] in {OPTIONAL} and name.split(".")[0] != "numpy":
        del sys.modules[name]
sys.meta_path.insert(0, Missing())
"""


def test_every_core_module_imports_without_optional_packages(after_torch):
    """With nothing installed but torch and safetensors, the rooms up to generation all load."""
    core = [name for name in modules() if name.split(".")[1] in CORE and name not in KERNELS]
    assert len(core) > 20
    after_torch(f"{BLOCK}\nimport importlib\nfor name in {core}: importlib.import_module(name)")


@pytest.mark.parametrize(
    "room",
    ["compat", "data", "draw", "export", "interop", "parallel", "recipes", "training", "cli"],
)
def test_every_other_module_imports(room, after_torch):
    """In an environment with the extras, each module can be imported by itself."""
    mine = [name for name in modules() if name.split(".")[1] == room]
    after_torch(f"import importlib\nfor name in {mine}: importlib.import_module(name)")


def test_import_foveal_loads_no_optional_dependency(after_torch):
    """A fresh process gains only foveal, safetensors and parts of Python's own library."""
    code = """
import sys, json, torch
before = set(sys.modules)
import foveal
gained = {name.split(".")[0] for name in set(sys.modules) - before}
print(json.dumps(sorted(gained - set(sys.stdlib_module_names))))
"""
    gained = set(json.loads(after_torch(code)))
    assert gained <= ALLOWED
    assert not gained & set(OPTIONAL)


OPERATORS = """
import torch, sys, foveal.common.words
print(torch.ops.foveal.pool.default, "foveal.models" in sys.modules)
"""


def test_import_foveal_leaves_torch_alone():
    """The package and the command load without torch, which is loaded with the first room.

    Whenever torch is loaded then, an exported program can be read.
    """
    code = """
import sys, foveal, foveal.cli
print("torch" in sys.modules, "numpy" in sys.modules)

class Asked(BaseException):
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            raise self

sys.meta_path.insert(0, asked := Asked())
try:
    foveal.patterns
    print("loads")
except Asked:
    print("asks")
sys.meta_path.remove(asked)
"""
    found = run(code + OPERATORS).split()
    assert found == ["False", "False", "asks", "foveal.pool.default", "False"]


def test_operators_are_there_if_torch_was_imported_first(after_torch):
    """An exported program is read after `import foveal`."""
    assert after_torch("import foveal" + OPERATORS).split() == ["foveal.pool.default", "False"]


def test_every_name_is_found_lazily_and_statically():
    """What type checkers read is what `foveal.NAME` gives; star imports and dir know all of it."""
    static = {}
    for node in ast.parse(Path(foveal.__file__).read_text("utf-8")).body:
        if isinstance(node, ast.If):
            for one in node.body:
                static |= {name.name: one.module for name in one.names}
    assert set(foveal.__all__) <= {*static, "__version__"}
    for name, home in static.items():
        if home == "foveal":
            expected = importlib.import_module(f"foveal.{name}")
        else:
            expected = getattr(importlib.import_module(home), name)
        assert getattr(foveal, name) is expected, name
        assert name in dir(foveal)
    scope = {}
    exec("from foveal import *", scope)
    assert set(foveal.__all__) <= scope.keys()
    with pytest.raises(AttributeError, match="no attribute 'atend'"):
        foveal.atend  # noqa: B018
    assert not hasattr(foveal, "__path_of_nothing__")


def test_lazy_names_are_compiled_and_pickled(after_dynamo):
    """A function that names foveal.attend is compiled whole; classes are pickled by their home."""
    code = """
import pickle, torch, foveal
def f(q):
    return foveal.attend(q, q, q, foveal.patterns.SlidingWindow(3))
q = torch.randn(1, 1, 20, 8)
found = torch.compile(f, fullgraph=True, backend="eager")(q)
torch.testing.assert_close(found, f(q))
print(pickle.loads(pickle.dumps(foveal.HaloNet)).__module__)
"""
    assert after_dynamo(code).split() == ["foveal.models.halonet.model"]


def test_import_foveal_is_quick(tmp_path, after_torch):
    """`import foveal` takes at most 0.3 s of processor time more than `import torch`.

    Byte code is kept, as it is for users, even where the environment says not to write any:
    the first run compiles, and the others read what it wrote.
    """
    code = f"""
import sys, time, torch
sys.dont_write_bytecode, sys.pycache_prefix = False, {str(tmp_path)!r}
start = time.process_time()
import foveal
print(time.process_time() - start)
"""
    times = []
    for _ in range(5):
        times.append(float(after_torch(code)))
        if times[-1] <= 0.15:  # clearly quick: no need to try for a better one
            break
    assert min(times) <= 0.3, times
