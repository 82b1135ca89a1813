"""What the commands do with runs on captioned pictures: finish, score, draw."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from foveal.common.inputs import reading
from foveal.data.caption_sources import captions_to_score
from foveal.data.captions import CaptionedSet
from foveal.data.sampling import spread
from foveal.data.tokens import CaptionTokenizer
from foveal.models import CLIP, ImageTokenizer, load_model
from foveal.models.vae import codebook_use
from foveal.recipes.assets import tokenizer_of
from foveal.recipes.clip import CANDIDATES, caption_tokens, retrieval_totals, retrieve
from foveal.recipes.config import RunConfig
from foveal.recipes.dalle import image_bits
from foveal.recipes.report import PICTURES
from foveal.recipes.runs import load_config
from foveal.recipes.scoring import keep_result, open_model, sample
from foveal.recipes.tasks import require_task
from foveal.recipes.vae import MOST_PICTURES, decode_all, encode_all, reconstruct
from foveal.training.progress import showing, tracked

_SHOWN = 16
_BATCH = 100
_MOST_DRAWN = 10_000


def finish_captions(folder: Path, task: Any, config: RunConfig) -> None:
    """Draw a contact sheet of a run that has ended."""
    (folder / PICTURES).mkdir(exist_ok=True)
    model = task.model.eval()
    if config.task == "vae":
        _draw_reconstructions(model, task.valid_set, folder / PICTURES / "reconstructions.png")
    if config.task == "captions":
        index = spread(len(task.valid_set), _SHOWN)
        captions = task.valid_set.first_captions(index)
        images = draw_captions(model, task.tokenizer, captions, seed=0)
        _write_sheet(images, folder / PICTURES / "drawn.png", captions, 4)


@dataclass(frozen=True)
class CaptionEvaluation:
    """Scores on held-out captioned pictures.

    Attributes:
        scores: by name; see `foveal.recipes.caption_report.SCORES`.
        pictures: how many were scored; `skipped` files of the data could not be used.
        data, checksum: what was scored.
        seconds: time that the scoring took.
        checkpoint: the weights that were scored.
    """

    scores: dict[str, float]
    pictures: int
    skipped: int
    data: str
    checksum: str
    seconds: float
    checkpoint: str


def evaluate_captions(
    folder: Path, *, data: str | None = None, full: bool = False, device: str = "auto"
) -> CaptionEvaluation:
    """Score a run on its held-out pictures and captions and keep the result in its folder.

    Args:
        data: score other data: their test or validation part, or all of them.
        full: score everything, and not a sample of 2,000 pictures.
        device: see `foveal.training.machine.pick_device`.
    """
    config = load_config(folder)
    model, checkpoint = open_model(folder, config, device)
    with showing("reading"), reading(f"data={config.data.path if data is None else data!r}"):
        held_out = captions_to_score(config.data, data)
        held_out = sample(held_out, 0 if full else MOST_PICTURES, "pictures")
    started = time.perf_counter()
    with showing("scoring"):
        scores = _score(model, folder, config, held_out)
    result = CaptionEvaluation(
        scores=scores,
        pictures=len(held_out),
        skipped=len(held_out.skipped),
        data=held_out.name,
        checksum=held_out.checksum(),
        seconds=time.perf_counter() - started,
        checkpoint=checkpoint,
    )
    keep_result(folder, asdict(result))
    return result


def _score(
    model: Any, folder: Path, config: RunConfig, held_out: CaptionedSet
) -> dict[str, float]:
    if isinstance(model, CLIP):
        captions = held_out.first_captions()
        return _score_clip(model, tokenizer_of(folder), held_out.images(), captions)
    if isinstance(model, ImageTokenizer):
        return _score_vae(model, held_out)
    return _score_dalle(model, folder, config, held_out)


def draw_pictures(
    folder: Path,
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
    config = load_config(folder)
    require_task(config, "captions", "draw picture")
    tokenizer = tokenizer_of(folder)
    if not tokenizer.encode(text):
        raise ValueError(f"the text must not be empty, got {text!r}; try 'woman juggling'.")
    tokens = tokenizer.tokenize(text, config.data.text_length).expand(candidates, -1)
    model, _ = open_model(folder, config, device)
    with showing("drawing"):
        images = _draw(model, tokens, seed, sampling)
    if candidates > num:
        clip, words = load_clip(folder)
        texts = caption_tokens(words, [text], clip.settings.text_seq_len)
        place = next(model.parameters()).device
        with torch.no_grad():
            clip.to(place)
            told = clip.encode_text(texts.to(place))
            similarity = (clip.encode_image(fit(images, clip).to(place)) @ told.T)[:, 0]
        images = images[similarity.argsort(descending=True)[:num].cpu()]
    return _write_sheet(images, output)


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
    return clip, tokenizer_of(home)


def fit(images: Tensor, clip: CLIP) -> Tensor:
    """Pictures at the size that CLIP reads."""
    if tuple(images.shape[2:]) == clip.settings.pixels:
        return images
    return F.interpolate(images, clip.settings.pixels, mode="bilinear", antialias=True)


def _draw(model: Any, tokens: Tensor, seed: int | None, sampling: dict[str, Any]) -> Tensor:
    """Pictures of captions (n, words), some at a time so that the caches stay small."""
    parts = []
    for number, part in enumerate(tracked(tokens.split(_BATCH))):
        own = None if seed is None else seed + number
        parts.append(model.generate_image_tokens(part, seed=own, **sampling))
    return decode_all(model.vae, torch.cat(parts))


def _score_clip(
    clip: CLIP, tokenizer: CaptionTokenizer, images: Tensor, captions: Sequence[str]
) -> dict[str, float]:
    scores = _shares(retrieve(clip, tokenizer, fit(images, clip), captions))
    return {**scores, "chance_top10": min(1.0, 10 / min(CANDIDATES, len(captions)))}


def _score_vae(vae: ImageTokenizer, held_out: CaptionedSet) -> dict[str, float]:
    tokens, psnr = reconstruct(vae, held_out.images())
    use = codebook_use(tokens, vae.num_tokens)
    return {
        "psnr": float(psnr.mean()),
        "codebook_used": use.used,
        "codebook_perplexity": use.perplexity,
    }


def _score_dalle(
    model: Any, folder: Path, config: RunConfig, held_out: CaptionedSet
) -> dict[str, float]:
    """Bits per token, what the VAE can do at best, and what CLIP says about drawn pictures."""
    tokenizer, captions = tokenizer_of(folder), held_out.first_captions()
    texts = caption_tokens(tokenizer, captions, config.data.text_length)
    bits, count = image_bits(model, texts, encode_all(model.vae, held_out.images()))[
        "bits_per_image_token"
    ]
    scores = {"bits_per_image_token": bits / count, **_score_vae(model.vae, held_out)}
    if not config.data.clip:
        return scores
    clip, words = load_clip(folder)
    clip.to(next(model.parameters()).device)
    scores |= _score_clip(clip, words, held_out.images(), captions)
    index = spread(len(held_out), CANDIDATES)
    chosen = held_out.first_captions(index)
    drawn = fit(draw_captions(model, tokenizer, chosen, seed=0), clip)
    places = retrieve(clip, words, drawn, chosen)
    return scores | {f"drawn_{name}": value for name, value in _shares(places).items()}


def _shares(places: Tensor) -> dict[str, float]:
    return {name: total / count for name, (total, count) in retrieval_totals(places).items()}


def _draw_reconstructions(vae: ImageTokenizer, held_out: CaptionedSet, path: Path) -> None:
    """Rows of held-out pictures, each above a row of what comes back."""
    images = held_out.images(spread(len(held_out), _SHOWN))
    decoded = decode_all(vae, encode_all(vae, images))
    half = max(1, len(images) // 2)
    rows = [images[:half], decoded[:half], images[half:], decoded[half:]]
    _write_sheet(torch.cat(rows), path, columns=half)


def _write_sheet(
    images: Tensor, path: Path, captions: Sequence[str] = (), columns: int | None = None
) -> Path:
    from foveal.draw.sheet import draw_sheet

    return draw_sheet(images, path, captions=captions, columns=columns)
