"""A recipe that trains in a second, shared by the tests of the command."""

import pytest

TINY = """# Tiny recipe: a model that trains in a second
#
task = "bytes"

[model]
name = "TransformerLM"
dim = 16
depth = 1
heads = 2
dim_head = 8
dropout = 0.1
pattern = {{ name = "SlidingWindow", window = 8, causal = true }}

[data]
path = "{data}"
context = 16

[optimizer]
learning_rate = 1e-2
warmup_steps = 5

[training]
steps = 24
batch_size = 4
precision = "float32"
device = "cpu"
log_every = 4
evaluate_every = 8
checkpoint_every = 6
"""


@pytest.fixture(scope="session")
def tiny_recipe():
    """The recipe's text, in which {data} stands for the path of its data."""
    return TINY


@pytest.fixture
def text(tmp_path):
    """A small text that is easy to learn."""
    path = tmp_path / "text.txt"
    path.write_bytes(b"the quick brown fox jumps over the lazy dog. " * 60)
    return path


@pytest.fixture
def recipe(tmp_path, text):
    """The path of the tiny recipe."""
    path = tmp_path / "tiny.toml"
    path.write_text(TINY.format(data=text.as_posix()), encoding="utf-8")
    return path
