"""Captioned pictures of Hugging Face `datasets`: hf:NAME with a column of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from foveal.common.words import suggest
from foveal.data.caption_entries import captions_of
from foveal.data.image_hub import HubPictures, hub_parts, load_hub

_KEYS = ("text", "caption", "captions")


class HubCaptions(Sequence[list[str]]):
    """The captions of each row, read when they are asked for.

    Args:
        split: a map-style data set.
        column: of the captions: texts, or lists of them.
        name: what to call it.
    """

    def __init__(self, split: Any, column: str, name: str) -> None:
        self._rows, self._column, self._name = split.select_columns([column]), column, name

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[one] for one in range(len(self))[number]]
        row = self._rows[int(number)]
        return captions_of(row, self._column, f"row {number} of {self._name}")


def hub_captions(path: str, column: str, size: int) -> dict[str, tuple[HubPictures, HubCaptions]]:
    """Pictures and captions by part.

    Raises:
        ValueError: no package, no such data, or it lacks a column.
    """
    import datasets

    found = {}
    for part, split in hub_parts(load_hub(path)).items():
        features, name = split.features or {}, f"{path}, {part} part"
        image = next((k for k, v in features.items() if isinstance(v, datasets.Image)), None)
        text = column or next((key for key in _KEYS if key in features), "")
        if image is None or text not in features:
            hint = suggest(text or "caption", list(features), "name it with --data.column.")
            raise ValueError(
                f"data.path={path!r} must have a column of pictures and one of captions, it has "
                f"{', '.join(features) or 'none'}; {hint}"
            )
        split = split.cast_column(image, datasets.Image(decode=False))
        found[part] = HubPictures(split, image, size, name), HubCaptions(split, text, name)
    return found
