"""Pictures from words, and the CLIP that picks among them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foveal.data.tokens import CaptionTokenizer
from foveal.draw.sheet import draw_sheet
from foveal.models import CLIP, load_model
from foveal.recipes.assets import read_asset
from foveal.recipes.clip.kind import caption_tokens, fit
from foveal.recipes.kind import Run, require_task
from foveal.recipes.runs import open_model, open_run
from foveal.recipes.vae.kind import decode_all
from foveal.training.progress import showing, tracked

_BATCH = 100
_MOST_DRAWN = 10_000


def draw_pictures(
    run: Run | Path | str,
    text: str,
    output: Path,
    *,
    num: int = 16,
    candidates: int | None = None,
    seed: int | None = None,
    device: str = "auto",
    **sampling: Any,
) -> Path:
    """A contact sheet of what a run draws for a text.

    Args:
        output: path of the PNG.
        num: pictures on it.
        candidates: pictures to draw, of which CLIP picks the best `num`; `num` unless given.
        seed: makes the draws repeatable.
        sampling: temperature, top_k, top_p, guidance.

    Raises:
        ValueError: the run draws no pictures, or has no CLIP to pick with; a text that is empty
            or too long.
    """
    candidates = num if candidates is None else candidates
    if not 1 <= num <= candidates <= _MOST_DRAWN:
        raise ValueError(
            f"num must be at least 1, and candidates at least num and at most {_MOST_DRAWN:,}, "
            f"got {num=}, {candidates=}."
        )
    run = open_run(run)
    require_task(run.config, "captions", "draw picture")
    tokenizer = read_asset("tokenizer", run.folder)
    if not text.strip() or not tokenizer.encode(text):
        raise ValueError(f"the text must not be empty, got {text!r}; try 'woman juggling'.")
    tokens = tokenizer.tokenize(text, run.config.data.text_length).expand(candidates, -1)
    model, _ = open_model(run, device)
    with showing("drawing"):
        images = _draw(model, tokens, seed, sampling)
    if candidates > num:
        images = _best(run.folder, text, images, next(model.parameters()).device)[:num]
    return draw_sheet(images, output)


@torch.no_grad()
def _best(folder: Path, text: str, images: Tensor, device: torch.device) -> Tensor:
    """Pictures (n, channels, height, width) in the order in which CLIP thinks they fit a text."""
    clip, words = load_clip(folder)
    texts = caption_tokens(words, [text], clip.settings.text_seq_len)
    clip.to(device)
    told = clip.encode_text(texts.to(device))
    similarity = (clip.encode_image(fit(images, clip).to(device)) @ told.T)[:, 0]
    return images[similarity.argsort(descending=True).cpu()]


def draw_captions(
    model: Any,
    tokenizer: CaptionTokenizer,
    captions: Sequence[str],
    seed: int | None = None,
    **sampling: Any,
) -> Tensor:
    """A picture for each caption: (captions, channels, height, width) in [0, 1], on the CPU."""
    tokens = caption_tokens(tokenizer, captions, model.text_seq_len)
    return _draw(model, tokens, seed, sampling)


def load_clip(folder: Path) -> tuple[CLIP, CaptionTokenizer]:
    """The CLIP of a DALL-E run and its tokenizer.

    Raises:
        ValueError: the run was trained without one.
    """
    home = folder / "clip"
    if not home.is_dir():
        raise ValueError(f"the run {folder} has no CLIP; train one with data.clip = 'clip-emoji'.")
    clip: Any = load_model(home)
    return clip, read_asset("tokenizer", home)


def _draw(model: Any, tokens: Tensor, seed: int | None, sampling: dict[str, Any]) -> Tensor:
    """Pictures of captions (n, words), some at a time so that the caches stay small."""
    parts = []
    for number, part in enumerate(tracked(tokens.split(_BATCH))):
        own = None if seed is None else seed + number
        parts.append(model.generate_image_tokens(part, seed=own, **sampling))
    return decode_all(model.vae, torch.cat(parts))
