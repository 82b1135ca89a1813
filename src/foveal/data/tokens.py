"""Captions as tokens: byte pairs learned from the captions, or those of CLIP."""

from __future__ import annotations

import gzip
import html
import io
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from foveal.common.files import write_file
from foveal.data.text_files import decode_text, lines, read_bytes

PADDING = 0
"""The id that fills up short captions; the models put one of their own in each position."""

_CLIP_MERGES = 49152 - 256 - 2
_MOST_BYTES = 64 << 20
_CLIP_SPECIAL = ["<|startoftext|>", "<|endoftext|>"]
_CLIP_WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)


class CaptionTokenizer:
    """Text to token ids and back, by byte pairs (Sennrich et al., 2016), over the package
    `tokenizers`.

    No text is out of vocabulary, for every byte has a token. Upper and lower case are the same.

    Args:
        tokenizer: a `tokenizers.Tokenizer`.

    Example:
        >>> from foveal.data import CaptionTokenizer
        >>> tokenizer = CaptionTokenizer.train(["red apple", "green apple"], vocabulary=300)
        >>> tokenizer.decode(tokenizer.encode("Green apple"))
        'green apple'
        >>> tokenizer.tokenize(["red apple"], context_length=8).shape
        torch.Size([1, 8])
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    @property
    def vocab_size(self) -> int:
        """Number of ids, the padding included."""
        return int(self._tokenizer.get_vocab_size())

    # -- making one -------------------------------------------------------------------------

    @classmethod
    def train(cls, captions: Iterable[str], vocabulary: int = 1024) -> Self:
        """Learn up to `vocabulary` byte pairs from captions; id 0 is left for the padding.

        Raises:
            ValueError: a vocabulary too small for the padding and the 256 bytes.
        """
        from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

        if vocabulary < 257:
            raise ValueError(
                f"vocabulary must be at least 257, the padding and every byte, got {vocabulary=}."
            )
        made = Tokenizer(models.BPE())
        made.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        made.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=["[PAD]"],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        made.train_from_iterator(captions, trainer)
        return cls(made)

    @classmethod
    def from_file(cls, path: str | Path) -> Self:
        """The tokenizer that `save` wrote, or any tokenizer.json of Hugging Face.

        Raises:
            ValueError: the file is missing or damaged.
        """
        from tokenizers import Tokenizer

        try:
            return cls(Tokenizer.from_file(str(path)))
        except Exception as error:  # the package raises plain Exception
            raise ValueError(f"{path} is not a readable tokenizer: {error}.") from None

    @classmethod
    def from_clip(cls, path: str | Path) -> ClipTokenizer:
        """CLIP's tokenizer from its list of merges, bpe_simple_vocab_16e6.txt[.gz].

        Raises:
            ValueError: the file is missing, or is no list of merges.
        """
        return ClipTokenizer(_clip_tokenizer(_read_merges(Path(path))))

    def save(self, path: str | Path) -> None:
        """Write it as tokenizer.json."""
        write_file(Path(path), lambda partial: self._tokenizer.save(str(partial)))

    # -- using it ---------------------------------------------------------------------------

    def encode(self, text: str) -> list[int]:
        """The ids of a text."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, tokens: Iterable[int] | Tensor, pad_tokens: Iterable[int] = ()) -> str:
        """The text of ids (length); paddings and ids beyond the vocabulary are left out.

        Args:
            pad_tokens: further ids to leave out.
        """
        ids = tokens.tolist() if isinstance(tokens, Tensor) else tokens
        skip = {PADDING, *pad_tokens}
        return self._join([i for i in map(int, ids) if i not in skip and i < self.vocab_size])

    def _join(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text.strip()

    def tokenize(
        self, texts: str | Sequence[str], context_length: int = 256, truncate_text: bool = False
    ) -> Tensor:
        """Ids (texts, context_length) int64, filled up with 0.

        Args:
            truncate_text: cut texts that are too long.

        Raises:
            ValueError: a text is too long, and must not be cut.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        result = torch.full((len(texts), context_length), PADDING)
        for row, text in zip(result, texts, strict=True):
            ids = self.encode(text)
            if len(ids) > context_length and not truncate_text:
                raise ValueError(
                    f"a caption must have at most {context_length} tokens, got {len(ids)} for "
                    f"{text!r}; shorten it, or allow truncation."
                )
            ids = ids[:context_length]
            row[: len(ids)] = torch.tensor(ids, dtype=torch.long)
        return result


class ClipTokenizer(CaptionTokenizer):
    """CLIP's tokenizer; made by `CaptionTokenizer.from_clip`.

    The ids are those of CLIP and of dalle-pytorch's SimpleTokenizer, so "!" has the id of the
    padding. Differs from them in: text with broken encoding is not repaired (their ftfy).
    """

    def encode(self, text: str) -> list[int]:
        """The ids of a text."""
        return super().encode(html.unescape(html.unescape(text)).strip())

    def _join(self, ids: list[int]) -> str:
        words = "".join(map(self._tokenizer.id_to_token, ids)).replace("</w>", " ")
        for special in _CLIP_SPECIAL:
            words = words.replace(special, "")
        raw = bytes(_BYTE_OF_LETTER[letter] for letter in words)
        return raw.decode("utf-8", errors="replace").strip()


def _read_merges(path: Path) -> list[tuple[str, str]]:
    """The merges after the heading line."""
    raw = read_bytes(path, _MOST_BYTES)
    if raw[:2] == b"\x1f\x8b":  # packed, whatever its name says
        try:
            raw = gzip.GzipFile(fileobj=io.BytesIO(raw)).read(_MOST_BYTES)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is not a readable list of merges: {error}.") from None
    text = decode_text(raw, str(path))
    merges = []
    for number, line in enumerate(lines(text)[1 : _CLIP_MERGES + 1], start=2):
        left, _, right = line.partition(" ")
        if not left or not right or " " in right:
            raise ValueError(f"line {number} of {path} must hold two tokens, got {line!r}.")
        merges.append((left, right))
    return merges


def _byte_letters() -> dict[int, str]:
    """Byte -> the letter that stands for it, in CLIP's order: printable ones come first."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable}
    return letters | {byte: chr(256 + number) for number, byte in enumerate(others)}


_BYTE_OF_LETTER = {letter: byte for byte, letter in _byte_letters().items()} | {" ": 32}


def _clip_tokenizer(merges: Sequence[tuple[str, str]]) -> Any:
    from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

    letters = list(_byte_letters().values())
    words = [*letters, *(letter + "</w>" for letter in letters), *(a + b for a, b in merges)]
    words += _CLIP_SPECIAL
    vocabulary = {word: number for number, word in enumerate(words)}
    made = Tokenizer(
        models.BPE(
            vocabulary,
            list(merges),
            end_of_word_suffix="</w>",
            fuse_unk=False,
        )
    )
    made.normalizer = normalizers.Sequence(
        [normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_CLIP_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    # found before the text is cut into bytes, but after it is lower case, as CLIP finds them
    made.add_special_tokens([AddedToken(one, normalized=True) for one in _CLIP_SPECIAL])
    return made
