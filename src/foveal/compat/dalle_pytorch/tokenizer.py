"""The tokenizers of dalle-pytorch, over foveal.data's byte pairs.

Differs from the package in: CLIP's merges are not shipped, but found where a package has them;
text with broken encoding is not repaired (its ftfy); texts that are too long raise ValueError.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foveal.data.tokens import CaptionTokenizer, ClipTokenizer

__all__ = [
    "tokenizer",
    "SimpleTokenizer",
    "HugTokenizer",
    "ChineseTokenizer",
    "YttmTokenizer",
    "default_bpe",
]

_MERGES = {
    "dalle_pytorch": "data/bpe_simple_vocab_16e6.txt",
    "clip": "bpe_simple_vocab_16e6.txt.gz",
    "open_clip": "bpe_simple_vocab_16e6.txt.gz",
}


tokenizer: SimpleTokenizer
"""Made when it is first asked for, since it reads a file."""


def default_bpe() -> str:
    """CLIP's list of merges in a package that is installed, which is not imported.

    Raises:
        FileNotFoundError: no package has it.
    """
    for package, file in _MERGES.items():
        spec = importlib.util.find_spec(package)
        for folder in (spec and spec.submodule_search_locations) or ():
            if (Path(folder) / file).is_file():
                return str(Path(folder) / file)
    raise FileNotFoundError(
        "CLIP's merges are not installed; give SimpleTokenizer(bpe_path) the file "
        f"bpe_simple_vocab_16e6.txt of {', '.join(_MERGES)}, or train a "
        "foveal.data.CaptionTokenizer."
    )


class SimpleTokenizer(ClipTokenizer):
    """CLIP's byte pairs.

    Args:
        bpe_path: CLIP's list of merges; None takes that of an installed package.
    """

    def __init__(self, bpe_path: str | Path | None = None) -> None:
        made = CaptionTokenizer.from_clip(default_bpe() if bpe_path is None else bpe_path)
        super().__init__(made._tokenizer)

    def decode(  # type: ignore[override]
        self,
        tokens: Iterable[int] | Tensor,
        remove_start_end: bool = True,
        pad_tokens: Iterable[int] = (),
    ) -> str:
        """The text of ids; paddings, and the words for start and end, are left out."""
        return super().decode(tokens, pad_tokens)


def _bpe_file(bpe_path: str | Path | None) -> Path:
    if bpe_path is None or not Path(bpe_path).is_file():
        raise ValueError(f"bpe_path must be a file of byte pairs, got {bpe_path!r}.")
    return Path(bpe_path)


class HugTokenizer(CaptionTokenizer):
    """A tokenizer.json of Hugging Face.

    Args:
        bpe_path: the file.
    """

    def __init__(self, bpe_path: str | Path | None = None) -> None:
        super().__init__(CaptionTokenizer.from_file(_bpe_file(bpe_path))._tokenizer)
        self.tokenizer = self._tokenizer


class _Foreign(CaptionTokenizer):
    """A tokenizer of a library that is imported when one is made."""

    tokenizer: Any

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        size = self.tokenizer.vocab_size
        return int(size() if callable(size) else size)

    def _kept(self, tokens: Iterable[int] | Tensor, pad_tokens: Iterable[int]) -> list[int]:
        ids = tokens.tolist() if isinstance(tokens, Tensor) else tokens
        skip = {0, *pad_tokens}
        return [one for one in map(int, ids) if one not in skip]


class ChineseTokenizer(_Foreign):
    """BERT's tokens of Chinese, by the package `transformers`."""

    def __init__(self) -> None:
        from transformers import BertTokenizer

        super().__init__(None)
        self.tokenizer = BertTokenizer.from_pretrained("bert-base-chinese")

    def encode(self, text: str) -> list[int]:
        """The ids of a text."""
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def decode(self, tokens: Iterable[int] | Tensor, pad_tokens: Iterable[int] = ()) -> str:
        """The text of ids, paddings left out."""
        return str(self.tokenizer.decode(self._kept(tokens, pad_tokens)))


class YttmTokenizer(_Foreign):
    """Byte pairs of the package `youtokentome`.

    Args:
        bpe_path: its model file.
    """

    def __init__(self, bpe_path: str | Path | None = None) -> None:
        import youtokentome

        super().__init__(None)
        self.tokenizer = youtokentome.BPE(model=str(_bpe_file(bpe_path)))

    def encode(self, texts: str | Sequence[str]) -> Any:
        """The ids of a text; or of several, a tensor each."""
        from youtokentome import OutputType

        several = [texts] if isinstance(texts, str) else list(texts)
        encoded = self.tokenizer.encode(several, output_type=OutputType.ID)
        return encoded[0] if isinstance(texts, str) else list(map(torch.tensor, encoded))

    def decode(self, tokens: Iterable[int] | Tensor, pad_tokens: Iterable[int] = ()) -> str:
        """The text of ids, paddings left out."""
        return str(self.tokenizer.decode([self._kept(tokens, pad_tokens)])[0])


def __getattr__(name: str) -> Any:
    if name == "tokenizer":
        globals()[name] = made = SimpleTokenizer()
        return made
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
