"""Every Python block of the packages' READMEs, and train.py, with only the import changed.

Texts come from the metadata of an installed package, or from a folder with checkouts:

    FOVEAL_READMES=FOLDER python -m pytest tests/compat/test_readme_blocks.py

FOLDER/<repository>/README.md, and train.py beside it; what is found in neither is skipped. The
sizes shrink by one rule, `shrunk`. What each block does is also in test_readmes.py, which runs
everywhere.
"""

import gzip
import importlib.metadata
import os
import re
import warnings
from pathlib import Path

import pytest
import torch

PACKAGES = {
    "halonet-pytorch": "halonet-pytorch",
    "vit-pytorch": "vit-pytorch",
    "h-transformer-1d": "h-transformer-1d",
    "hourglass-transformer-pytorch": "hourglass-transformer-pytorch",
    "dalle-pytorch": "DALLE-pytorch",
}
"""A distribution -> its repository."""

BLOCKS = {
    "halonet-pytorch": 1,
    "vit-pytorch": 1,  # of SepViT; the others are of other networks
    "h-transformer-1d": 1,
    "hourglass-transformer-pytorch": 5,
    "dalle-pytorch": 12,
}
CANNOT = {
    "OpenAIDiscreteVAE()": "downloads a network",
    "VQGanVAE()": "downloads a network",
    "mask = mask, clip = clip": "TypeError in the package too; runs without the keyword",
}
"""Text of a block -> why it cannot run as it stands, with any package."""


def source(package, file):
    """Text of a file of a package's repository, or the test is skipped."""
    folder = os.environ.get("FOVEAL_READMES")
    path = Path(folder or "", PACKAGES[package], file)
    if folder and path.is_file():
        return path.read_text(encoding="utf-8")
    if file == "README.md":
        try:
            text = importlib.metadata.metadata(package).get_payload()
        except importlib.metadata.PackageNotFoundError:
            text = ""
        if "```python" in text:
            return text
    pytest.skip(f"{file} of {package} is not here; FOVEAL_READMES names a folder with checkouts")


def swapped(text):
    """The imports of the five packages name foveal.compat's, and nothing goes to a GPU."""
    names = "|".join(name.replace("-", "_") for name in PACKAGES)
    text = re.sub(rf"^(from|import) (?=(?:{names})\b)", r"\1 foveal.compat.", text, flags=re.M)
    return text.replace(".cuda()", "")


def shrunk(text):
    """Numbers from 128 on become an eighth, products of two a 64th, depths at most 4.

    So do a dim_head of 64 and a patch of 32; not the side of a picture of 224, which SepViT needs.
    """
    code = re.sub(r"#[^\n]*", "", text)
    code = re.sub(r"\bdim_head *= *64\b", "dim_head = 8", code)
    code = re.sub(r"patch_size *= *32\b", "patch_size = 4", code)
    code = re.sub(r"depth *= *\d+\b", lambda m: f"depth = {min(int(m[0].split()[-1]), 4)}", code)
    code = re.sub(r"\((\d+) \* (\d+)\)", lambda m: str(int(m[1]) * int(m[2]) // 64), code)
    return re.sub(
        r"(?<![\w.])\d{3,}(?![\w.])",
        lambda m: m[0] if int(m[0]) < 128 or m[0] == "224" else str(int(m[0]) // 8),
        code,
    )


def blocks(package):
    """Its Python blocks; no commands of a shell, no other networks of vit-pytorch."""
    found = re.findall(r"```python\n(.*?)```", source(package, "README.md"), re.S)
    found = [one for one in found if not one.startswith("$")]
    return [one for one in found if package != "vit-pytorch" or "sep_vit" in one]


class Tokenizer:
    """What generate_texts asks for: a letter is a token."""

    def encode(self, text):
        return [ord(letter) for letter in text]

    def decode(self, tokens, pad_tokens=()):
        return "".join(chr(int(token)) for token in tokens if int(token) not in pad_tokens)


def run(block, names):
    """Run a block after the ones before it; what the text around it gives is given."""
    if "generate_texts" in block:
        names = {**names, "tokenizer": Tokenizer(), "text": "red"}
    code = shrunk(swapped(block))
    exec(compile(code, "README.md", "exec"), names)
    for name, sizes in re.findall(r"^(\w+)(?:\.shape| = \w+\(.*\)) +# (\(\d.*\))$", block, re.M):
        assert names[name].shape[1:] == eval(shrunk(sizes))[1:], name  # which rows, it errs once
    return names


@pytest.mark.parametrize("package", PACKAGES)
def test_every_block_runs(package):
    """In the order of the README, in one process as a reader would; those of CANNOT say why."""
    texts = blocks(package)
    assert len(texts) == BLOCKS[package]
    torch.manual_seed(0)
    names = {}
    for number, block in enumerate(texts, 1):
        reason = next((why for part, why in CANNOT.items() if part in block), None)
        if reason is None:
            try:
                names = run(block, names)
            except Exception as error:
                raise AssertionError(f"block {number} of {package}:\n{block}") from error
        elif reason.startswith("TypeError"):
            with pytest.raises(TypeError, match="mask"):
                run(block, names)
            names = run(block.replace("mask = mask, ", ""), names)
            assert names["scores"].shape == (4,)


SMALLER = {
    "int(1e5)": "2",  # steps
    "e6)": "e2)",  # bytes
    "SEQ_LEN = 4096": "SEQ_LEN = 2048",
    "BATCH_SIZE = 4": "BATCH_SIZE = 1",
    "GENERATE_LENGTH = 512": "GENERATE_LENGTH = 8",
    "np.fromstring(": "np.frombuffer(",  # what NumPy is taking away
}


@pytest.mark.parametrize("package", ["h-transformer-1d", "hourglass-transformer-pytorch"])
def test_train_py_runs(package, tmp_path, monkeypatch, capsys):
    """Two steps with accumulated gradients, one validation, one sample, on 9,504 bytes."""
    pytest.importorskip("tqdm")
    code = source(package, "train.py")
    for old, new in SMALLER.items():
        assert old in code or "4096" in old, old
        code = code.replace(old, new)
    (tmp_path / "data").mkdir()
    with gzip.open(tmp_path / "data" / "enwik8.gz", "wb") as file:
        file.write(bytes(range(32)) * 297)  # an eighth of the bytes that there are, too
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's about an array that is read-only
        exec(compile(shrunk(swapped(code)), "train.py", "exec"), {"__name__": "__main__"})
    said = capsys.readouterr().out
    assert said.count("training loss: ") == 2
    assert said.count("validation loss: ") == 1
    assert " " * 8 in said.split("\n")  # what such bytes are written as
