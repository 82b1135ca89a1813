"""Bytes as a tokenizer of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizer

from foveal.integrations.transformers.config import FovealConfig


class ByteTokenizer(PreTrainedTokenizer):
    """Text as its UTF-8 bytes, 0 to 255, as foveal's models of bytes were trained on it.

    There are no special tokens. Padding is byte 0 on the left, which the attention mask marks;
    `tokenizer.eos_token = "\\n"` or any other byte makes one that ends. The `stop_strings` of
    `generate` must be ASCII: transformers looks for the text of single tokens in them.

    Example:
        >>> from foveal.integrations.transformers import ByteTokenizer
        >>> tokenizer = ByteTokenizer()
        >>> tokenizer("né")["input_ids"]
        [110, 195, 169]
        >>> tokenizer.decode([110, 195, 169])
        'né'
    """

    model_input_names = ("input_ids", "attention_mask")
    padding_side = "left"

    def __init__(self, pad_token: str = "\0", **options: Any) -> None:
        super().__init__(pad_token=pad_token, **{"padding_side": "left", **options})

    @classmethod
    def from_pretrained(cls, name: Any, *args: Any, **options: Any) -> Any:
        """As of transformers; a folder without a tokenizer must be of a model of bytes.

        Raises:
            ValueError: its model has another number of tokens.
        """
        folder = Path(name)
        if (folder / "config.json").is_file() and not (folder / "tokenizer_config.json").is_file():
            size = FovealConfig.from_pretrained(folder).vocab_size
            if size != 256:
                raise ValueError(
                    f"{folder} has no tokenizer, and its model with num_tokens={size} is none of "
                    "bytes; save the tokenizer that it was trained with beside it."
                )
        return super().from_pretrained(name, *args, **options)

    @property
    def vocab_size(self) -> int:
        """Number of bytes."""
        return 256

    def get_vocab(self) -> dict[str, int]:
        """Character of Latin-1 -> byte."""
        return {chr(byte): byte for byte in range(256)}

    def _tokenize(self, text: str, **options: Any) -> list[str]:
        return list(text.encode().decode("latin-1"))

    def _convert_token_to_id(self, token: str) -> int:
        return ord(token)

    def _convert_id_to_token(self, index: int) -> str:
        return chr(index)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Text of bytes; what is no UTF-8 becomes U+FFFD."""
        return "".join(tokens).encode("latin-1").decode(errors="replace")

    def save_vocabulary(
        self, save_directory: str, filename_prefix: str | None = None
    ) -> tuple[()]:
        """Nothing to write: every byte is there."""
        return ()


AutoTokenizer.register(FovealConfig, slow_tokenizer_class=ByteTokenizer, exist_ok=True)
