"""Plugs are optional: without their packages foveal imports, and each plug says what it needs."""

import json
import pkgutil

import pytest

import foveal.integrations
from foveal.common.packages import how_to_get

PLUGS = sorted(module.name for module in pkgutil.iter_modules(foveal.integrations.__path__))
OPTIONAL = [
    *("transformers", "timm", "natten", "deepspeed", "diffusers", "open_clip", "torchvision"),
    *("huggingface_hub", "accelerate", "PIL", "tensorboard", "wandb", "mlflow", "trackio"),
]
BLOCK = f"""
import sys, torch  # which may load what it finds

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {OPTIONAL}:
            raise ModuleNotFoundError("not installed: " + name, name=name)

for name in list(sys.modules):
    if name.split(".")[0] in {OPTIONAL}:
        del sys.modules[name]
sys.meta_path.insert(0, Missing())
"""
SAYS = """
import importlib, json, foveal, foveal.integrations
told = {}
for name in %r:
    try:
        importlib.import_module("foveal.integrations." + name)
        told[name] = None
    except ModuleNotFoundError as error:
        told[name] = [error.name, str(error)]
family = None
try:
    foveal.models.registry.family("diffusers_vq")
except ModuleNotFoundError as error:
    family = str(error)
print(json.dumps([told, family, foveal.list_models("dalle")]))
"""


@pytest.fixture(scope="module")
def said(after_torch):
    """What each plug says in a bare process, what a saved VQModel says, and models."""
    return json.loads(after_torch(f"{BLOCK}\n{SAYS % PLUGS}"))


@pytest.mark.parametrize("plug", PLUGS)
def test_a_missing_package_is_named_in_one_line(plug, said):
    """With the command that installs it; a plug that needs none works."""
    told = said[0][plug]
    if told is None:
        return
    package, message = told
    assert package in OPTIONAL
    assert "\n" not in message
    assert "which is not installed: pip install" in message
    assert message.endswith(how_to_get(package))
    assert f"foveal.integrations.{plug}" in message


def test_the_others_go_on(said):
    """foveal itself loads; what a saved model needs is told likewise."""
    _, family, models = said
    assert family.endswith(f"not installed: {how_to_get('diffusers')}")
    assert models == ["dalle"]


def test_plugs_are_in_the_list():
    """The room says which there are."""
    listed = foveal.integrations.__doc__
    assert [plug for plug in PLUGS if f"`foveal.integrations.{plug}`" not in listed] == []
