"""Generation with DALLE: pictures from words, the rest of a picture, the rest of a text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from foveal.caches import DecodingState
from foveal.generation import Decoder, Recompute, Recorded, Sampler, generate
from foveal.layers.weights import device_of
from foveal.models.base import evaluating

PRIMED = 0.4375
"""Share of a picture that primes by default: the paper's 14 of 32 rows."""


class Pictures:
    """A decoder of image tokens for given texts, perhaps guided.

    The first token it is given stands for the text and is ignored. Guidance runs a second batch
    without text beside the first, with a state of its own, and moves the logits away from it
    (Ho and Salimans, "Classifier-Free Diffusion Guidance", 2022).

    Args:
        text: (batch, words) int.
        guidance: 1 = none.
    """

    recordable = True

    def __init__(self, model: Any, text: Tensor, guidance: float) -> None:
        self.model, self.guidance = model, guidance
        self.guided = guidance != 1
        self.text = torch.cat((text, torch.zeros_like(text))) if self.guided else text

    def prefill(
        self, tokens: Tensor, max_length: int | None = None
    ) -> tuple[Tensor, DecodingState]:
        """(batch, 1 + known image tokens) -> logits (batch, num_image_tokens), state."""
        logits, cache = self.model.prefill(self.text, self._both(tokens[:, 1:]))
        return self._guide(logits), cache

    def step(self, token: Tensor, cache: DecodingState) -> tuple[Tensor, DecodingState]:
        """(batch,) -> logits (batch, num_image_tokens), state."""
        logits, cache = self.model.step(self._both(token), cache)
        return self._guide(logits), cache

    def whole(self, tokens: Tensor) -> Tensor:
        """Logits (batch, 1, num_image_tokens) after the last token, without a state."""
        logits = self.model(self.text, self._both(tokens[:, 1:]))
        return self._guide(logits[:, -1:, self.model.num_text_tokens :])

    def _both(self, tokens: Tensor) -> Tensor:
        return torch.cat((tokens, tokens)) if self.guided else tokens

    def _guide(self, logits: Tensor) -> Tensor:
        if not self.guided:
            return logits
        told, untold = logits.chunk(2)
        return untold + (told - untold) * self.guidance


class Words:
    """A decoder of text tokens; the first one is the start token."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def prefill(
        self, tokens: Tensor, max_length: int | None = None
    ) -> tuple[Tensor, DecodingState]:
        """(batch, 1 + words) -> logits (batch, num_text_tokens), state."""
        return self.model.prefill(tokens[:, 1:], whole_text=False)

    def step(self, token: Tensor, cache: DecodingState) -> tuple[Tensor, DecodingState]:
        """(batch,) -> logits (batch, num_text_tokens), state."""
        return self.model.step(token, cache)


@torch.no_grad()
def generate_images(
    model: Any,
    texts: Tensor | str | Sequence[str],
    num_images: int = 1,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    guidance: float = 1.0,
    rerank: Any = None,
    img: Tensor | None = None,
    num_init_img_tokens: int | None = None,
    num_init_img_rows: int | None = None,
    seed: int | None = None,
    use_cache: bool = True,
    recorded: bool = False,
    tokenizer: Any = None,
    progress: Callable[[int], None] | None = None,
    clip: Any = None,
    filter_thres: float | None = None,
    cond_scale: float | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Pictures for texts. The caller's tensors are not changed.

    Args:
        texts: (batch, words) tokens, 0 = padding, or strings for the tokenizer.
        num_images: pictures a text.
        temperature, top_k, top_p, min_p: see foveal.generation.Sampler.
        guidance: how far to move towards what the text says; 1 = not at all.
        rerank: a CLIP, called as rerank(text, images) in evaluation mode; each text's
            pictures are sorted, best first. It is tried before any token is drawn. One that
            `reads_strings` (foveal.integrations.open_clip) is given strings in place of tokens.
        img: pictures (batch or 1, channels, height, width), or their tokens, whose first
            tokens are kept.
        num_init_img_tokens, num_init_img_rows: how many tokens or rows of `img` are kept; by
            default 14 / 32 of them.
        seed: makes the draws repeatable.
        use_cache: False runs the whole sequence again for every token.
        recorded: step by one recorded step, on a GPU a CUDA graph: see
            foveal.generation.Recorded.
        tokenizer: for strings: tokenizer.tokenize(texts, text_seq_len, truncate_text=True).
        progress: called with 1 after each token.
        clip: as rerank, but the order stays (dalle-pytorch).
        filter_thres: share of the whole vocabulary, text included, that is cut off
            (dalle-pytorch); in place of top_k.
        cond_scale: guidance, as dalle-pytorch calls it.

    Returns:
        (batch * num_images, channels, height, width) in the order of the texts; with `rerank`
        or `clip` also their scores (batch * num_images,).

    Raises:
        ValueError: there is no VAE, or options that do not fit.
    """
    vae = model._need_vae()
    text = _tokenize(model, texts, tokenizer)
    judge = clip if rerank is None else rerank
    full = torch.nn.functional.pad(text, (0, model.text_seq_len - text.shape[1]))
    told: Any = full
    if judge is not None:
        told = _strings(texts, full, tokenizer) if _reads_strings(judge) else full
        _check_judge(judge, told, model)
    sampler = Sampler(temperature, _top_k(model, top_k, filter_thres), top_p, min_p, seed)
    guidance = guidance if cond_scale is None else cond_scale
    prime = (img, num_init_img_tokens, num_init_img_rows)
    how = (use_cache, recorded, progress)
    tokens = _image_tokens(model, text, num_images, sampler, guidance, prime, *how)
    images = vae.decode(tokens)
    if judge is None:
        return images
    with evaluating(judge):
        scores = judge(_repeated(told, num_images), images, return_loss=False)
    return (images, scores) if rerank is None else _sorted(images, scores, num_images)


@torch.no_grad()
def generate_image_tokens(
    model: Any,
    text: Tensor,
    num_images: int = 1,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    guidance: float = 1.0,
    img: Tensor | None = None,
    num_init_img_tokens: int | None = None,
    num_init_img_rows: int | None = None,
    seed: int | None = None,
    use_cache: bool = True,
    recorded: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """Image tokens (batch * num_images, image_seq_len) for texts; see `generate_images`."""
    sampler = Sampler(temperature, top_k, top_p, min_p, seed)
    prime = (img, num_init_img_tokens, num_init_img_rows)
    how = (use_cache, recorded, progress)
    return _image_tokens(model, text, num_images, sampler, guidance, prime, *how)


def _image_tokens(
    model: Any,
    text: Tensor,
    num_images: int,
    sampler: Sampler,
    guidance: float,
    prime: tuple[Tensor | None, int | None, int | None],
    use_cache: bool,
    recorded: bool,
    progress: Callable[[int], None] | None,
) -> Tensor:
    """As `generate_image_tokens`; text (batch, words), and what primes as in `_known`."""
    if num_images < 1:
        raise ValueError(f"num_images must be at least 1, got {num_images=}.")
    device = device_of(model.to_logits)
    text = model._words(text)[:, : model.text_seq_len].to(device)
    text = text.repeat_interleave(num_images, 0)
    known = _known(model, *prime, len(text))
    start = torch.nn.functional.pad(known, (1, 0))  # a token that stands for the text
    with evaluating(model):
        pictures = Pictures(model, text, guidance)
        decoder: Decoder = pictures if use_cache else Recompute(pictures.whole)
        tokens, _ = generate(
            Recorded(decoder, model.max_seq_len) if recorded else decoder,
            start,
            model.image_seq_len - known.shape[1],
            sampler=sampler,
            progress=progress,
        )
    return tokens[:, 1:]


@torch.no_grad()
def generate_texts(
    model: Any,
    tokenizer: Any = None,
    text: Tensor | str | None = None,
    *,
    filter_thres: float | None = None,
    temperature: float = 1.0,
    num_texts: int = 1,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
) -> tuple[Tensor, list[str]]:
    """Complete a text, or make one up.

    Args:
        tokenizer: with encode(text) -> ids and decode(ids) -> text; may be None where `text`
            is no string.
        text: the beginning: a string, or tokens (batch, words) with 0 = padding at the end.
        num_texts: completions of each beginning.
        filter_thres, temperature, top_k, top_p, seed: as in `generate_images`.

    Returns:
        tokens (batch * num_texts, text_seq_len), 0 after the end; and the texts, without a
        tokenizer none.

    Raises:
        ValueError: a string without a tokenizer, or options that do not fit.
    """
    device = device_of(model.to_logits)
    start = _beginning(model, tokenizer, text).to(device).repeat_interleave(num_texts, 0)
    lengths = (start != 0).int().cumprod(1).sum(1) + 1
    longest = int(lengths.max())
    prompt = torch.nn.functional.pad(start, (1, 0))[:, :longest]
    padding = range(model.settings.num_text_tokens, model.num_text_tokens)
    sampler = Sampler(temperature, _top_k(model, top_k, filter_thres), top_p, seed=seed)
    with evaluating(model):
        tokens, _ = generate(
            Words(model),
            prompt,
            model.text_seq_len + 1 - int(lengths.min()),
            sampler=sampler,
            lengths=lengths,
            stop=padding,
        )
    tokens = tokens[:, 1 : model.text_seq_len + 1]
    tokens = tokens.masked_fill(tokens >= padding.start, 0)
    if tokenizer is None:
        return tokens, []
    return tokens, [_tokenizer(tokenizer).decode(row[row != 0].tolist()) for row in tokens]


# -- parts --------------------------------------------------------------------------------------


def _tokenize(model: Any, texts: Tensor | str | Sequence[str], tokenizer: Any) -> Tensor:
    length = model.text_seq_len
    if isinstance(texts, Tensor):
        return texts[:, :length]
    if tokenizer is None:
        raise ValueError("texts as strings need a tokenizer, got tokenizer=None.")
    rows = [texts] if isinstance(texts, str) else list(texts)
    return tokenizer.tokenize(rows, length, truncate_text=True)


def _beginning(model: Any, tokenizer: Any, text: Tensor | str | None) -> Tensor:
    if isinstance(text, Tensor):
        return model._words(text)
    if not text:
        return torch.zeros(1, 0, dtype=torch.long)
    if tokenizer is None:
        raise ValueError("text as a string needs a tokenizer, got tokenizer=None.")
    ids = list(_tokenizer(tokenizer).encode(text))
    return model._words(torch.tensor([ids], dtype=torch.long))


def _top_k(model: Any, top_k: int | None, filter_thres: float | None) -> int | None:
    if filter_thres is None:
        return top_k
    if not 0 <= filter_thres <= 1:
        raise ValueError(f"filter_thres must be from 0 to 1, got {filter_thres=}.")
    return max(int((1 - filter_thres) * model.total_tokens), 1)


def _known(
    model: Any, img: Tensor | None, num_tokens: int | None, num_rows: int | None, batch: int
) -> Tensor:
    """The first tokens of the pictures that prime (batch, tokens)."""
    device = device_of(model.to_logits)
    if img is None:
        return torch.zeros(batch, 0, dtype=torch.long, device=device)
    tokens = model._image_tokens(img, len(img)).to(device)
    if num_rows is not None:
        num_tokens = num_rows * model.grid[1]
    if num_tokens is None:
        num_tokens = min(int(PRIMED * model.image_seq_len), tokens.shape[1])
    if not 0 <= num_tokens < model.image_seq_len or num_tokens > tokens.shape[1]:
        raise ValueError(
            "num_init_img_tokens must be fewer than the picture's "
            f"{model.image_seq_len} tokens and at most those given, {tokens.shape[1]}; got "
            f"{num_tokens}."
        )
    if batch % len(tokens):
        raise ValueError(
            f"img must hold one picture, or one a text; got {len(tokens)} for {batch} "
            "pictures to generate."
        )
    return tokens[:, :num_tokens].repeat_interleave(batch // len(tokens), 0)


def _reads_strings(judge: Any) -> bool:
    return bool(getattr(judge, "reads_strings", False))


def _strings(texts: Any, tokens: Tensor, tokenizer: Any) -> list[str]:
    """Texts as they were given, or what a tokenizer makes of tokens (batch, words)."""
    if isinstance(texts, str):
        return [texts]
    if not isinstance(texts, Tensor):
        return list(texts)
    if tokenizer is None:
        raise ValueError(
            "rerank reads strings, got tokens and tokenizer=None; give texts as strings, or the "
            "tokenizer that decodes them."
        )
    return [_tokenizer(tokenizer).decode(row[row != 0].tolist()) for row in tokens]


def _repeated(told: Any, times: int) -> Any:
    """Each text so many times, one after another: tokens (batch, words) or strings."""
    if isinstance(told, Tensor):
        return told.repeat_interleave(times, 0)
    return [text for text in told for _ in range(times)]


def _check_judge(judge: Any, texts: Any, model: Any) -> None:
    """Raise ValueError unless a CLIP scores these texts with pictures as the VAE makes them.

    Tried on empty pictures before hours are spent on generating.
    """
    device = device_of(model.to_logits)
    tokens = torch.zeros(len(texts), model.image_seq_len, dtype=torch.long, device=device)
    try:
        with evaluating(judge, model):
            scores = judge(texts, model._need_vae().decode(tokens), return_loss=False)
    except Exception as error:  # whatever a foreign module raises
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"rerank must score these texts with pictures of the VAE, got a "
            f"{type(judge).__name__} that fails: {reason}"
        ) from error
    if not isinstance(scores, Tensor) or scores.shape != (len(texts),):
        found = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(f"rerank must give one score a picture, ({len(texts)},), got {found}.")


def _sorted(images: Tensor, scores: Tensor, each: int) -> tuple[Tensor, Tensor]:
    """The pictures of each text, best first."""
    order = scores.unflatten(0, (-1, each)).argsort(1, descending=True)
    first = torch.arange(0, len(scores), each, device=order.device)
    places = (order + first[:, None]).flatten().to(images.device)
    return images[places], scores[places]


def _tokenizer(tokenizer: Any) -> Any:
    """Tokenizers of dalle-pytorch keep the one that encodes inside."""
    return tokenizer if hasattr(tokenizer, "encode") else tokenizer.tokenizer
