"""Optional packages: a missing one is named in one line with the command that installs it."""

import pytest

from foveal.common.packages import how_to_get, need


@pytest.mark.parametrize(
    ("module", "command"),
    [
        ("matplotlib.pyplot", "pip install 'foveal[draw]'"),
        ("transformers", "pip install 'foveal[transformers]'"),
        ("open_clip", "pip install 'foveal[open_clip]'"),
        ("pyarrow", "pip install pyarrow"),
    ],
)
def test_the_command_names_what_brings_a_module(module, command):
    """An extra where foveal has one, or the package."""
    assert how_to_get(module) == command


def test_a_missing_package_is_one_line():
    """It names who needs it, what is missing, and the command."""
    with pytest.raises(
        ModuleNotFoundError, match=r"^X needs the package nowhere_to_be_had, which"
    ):
        need("nowhere_to_be_had", "X")


def test_what_a_package_lacks_itself_is_not_hidden(tmp_path, monkeypatch):
    """A package that is there and fails to import another keeps its own error."""
    (tmp_path / "half_there.py").write_text("import nowhere_to_be_had", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match=r"^No module named"):
        need("half_there", "X")


def test_a_package_that_is_there_is_given():
    """The module itself, submodules too."""
    assert need("torch.nn", "X").Module
