"""DALLE: words and the tokens of a picture as one sequence."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.caches import DecodingState
from foveal.common.by_example import uniform
from foveal.layers.attention import SelfAttention
from foveal.layers.checks import Device
from foveal.layers.linear import is_plain, linear
from foveal.layers.weights import device_of, matrix
from foveal.models.base import Model
from foveal.models.causal import in_chunks
from foveal.models.dalle.config import SIZES, DALLEConfig
from foveal.models.dalle.generate import generate_image_tokens, generate_images, generate_texts
from foveal.models.dalle.tokenizer import ImageTokenizerLike, attach, config_with, from_description
from foveal.models.dalle.tokens import check_range, checked_image, checked_text, cross_entropy
from foveal.models.dalle.transformer import Transformer
from foveal.models.registry import register

SAME = (
    *("heads", "dim_head", "ff_mult", "activation", "kernel_size", "dilation", "reversible"),
    *("attn_dropout", "ff_dropout", "sandwich_norm", "shift_tokens", "rotary_emb"),
    *("shared_attn_ids", "shared_ff_ids"),
)
"""Keywords that a DALLE hands on to its transformer."""


@register(SIZES)
class DALLE(Model):
    """Pictures from words: a transformer over text tokens followed by image tokens.

    Ramesh et al., "Zero-Shot Text-to-Image Generation" (2021). Text tokens are
    0 <= token < num_text_tokens, where 0 is padding; image tokens those of the VAE.
    Differs from the paper in: rotary positions, token shift and a layer scale by default, as in
    dalle-pytorch.

    Args:
        config: a DALLEConfig; or give its keywords, which win where both are given. See
            DALLEConfig for their meaning.
        vae: what turns pictures into tokens and back: num_tokens, image_size, num_layers (or
            grid), get_codebook_indices(images) and decode(tokens). It is frozen. Without one the
            model works on image tokens alone, of num_image_tokens and image_grid. A VAE that is
            not a foveal model is neither saved nor moved with the model.

    Attributes:
        num_text_tokens: text tokens, those of padding included.
        text_seq_len, image_seq_len: tokens of a full text and of a picture.
        max_seq_len: longest input: start token, text, and all of the picture but its last token.

    Raises:
        ValueError: an unknown keyword, sizes that do not fit, or a VAE with other numbers.

    Example:
        >>> import torch
        >>> from foveal.models import DALLE
        >>> model = DALLE(
        ...     dim=32, depth=2, heads=2, dim_head=16, num_text_tokens=50, text_seq_len=6,
        ...     num_image_tokens=20, image_grid=4, attn_types=("axial_row", "axial_col"),
        ... )
        >>> text = torch.tensor([[7, 3, 9]])
        >>> model.generate_image_tokens(text, seed=0).shape
        torch.Size([1, 16])
    """

    family = "dalle"
    pipeline_tag = "text-to-image"
    config_class = DALLEConfig
    settings: DALLEConfig
    vae: ImageTokenizerLike | None
    generate_images = generate_images
    generate_image_tokens = generate_image_tokens
    generate_texts = generate_texts

    def __init__(
        self, config: DALLEConfig | None = None, /, *, vae: Any = None, **options: Any
    ) -> None:
        super().__init__()
        c = DALLEConfig.resolve(config, options)
        if vae is None and c.vae is not None:
            vae = from_description(c.vae)
        given = set(options) if config is None else set(DALLEConfig.names())
        c = c if vae is None else config_with(c, vae, given)
        self.settings = c
        self.text_seq_len, self.image_seq_len = c.text_seq_len, math.prod(c.grid)
        self.num_image_tokens, self.grid = c.num_image_tokens, c.grid
        self.num_text_tokens = c.num_text_tokens + c.text_seq_len
        self.total_tokens = self.num_text_tokens + self.num_image_tokens
        self.max_seq_len = self.text_seq_len + self.image_seq_len
        attach(self, vae)
        self.transformer = Transformer(
            dim=c.dim,
            depth=c.depth,
            text_length=c.text_seq_len + 1,
            image_grid=c.grid,
            attn_types=c.types or ("full",),
            rotate_values=c.compat is not None,
            **{name: getattr(c, name) for name in SAME},
        )
        self.norm = nn.LayerNorm(c.dim)
        self.to_logits = nn.Linear(c.dim, self.total_tokens)
        if not c.share_input_output_emb:
            self.text_emb = nn.Embedding(self.num_text_tokens, c.dim)
            self.image_emb = nn.Embedding(self.num_image_tokens, c.dim)
        if not c.rotary_emb:
            self.text_pos_emb = nn.Embedding(self.text_seq_len + 1, c.dim)
            self.row_emb = nn.Parameter(torch.randn(c.grid[0], c.dim))
            self.column_emb = nn.Parameter(torch.randn(c.grid[1], c.dim))

    def train(self, mode: bool = True) -> DALLE:
        """Training mode for all but the VAE, which is frozen."""
        super().train(mode)
        if isinstance(self.vae, nn.Module):
            self.vae.eval()
        return self

    @property
    def is_causal(self) -> bool:
        """Whether the model can be decoded a token at a time."""
        layers = self.transformer.attentions
        return all(one.pattern.is_causal for one in layers if isinstance(one, SelfAttention))

    # -- training ---------------------------------------------------------------------------

    def forward(
        self,
        text: Tensor,
        image: Tensor | None = None,
        return_loss: bool = False,
        null_cond_prob: float = 0.0,
    ) -> Tensor:
        """Logits of every position, or the loss.

        Args:
            text: (batch, up to text_seq_len) int, 0 = padding; padded to text_seq_len.
            image: pictures (batch, channels, height, width) for the VAE, or their tokens
                (batch, up to image_seq_len).
            return_loss: return (text loss + loss_img_weight * image loss) / (loss_img_weight + 1).
            null_cond_prob: probability of drawing a picture without its text, for guidance.

        Returns:
            (batch, 1 + text_seq_len + image tokens, at most max_seq_len, total_tokens): text
            tokens first, and the lowest finite value where a position cannot have a token; or the
            loss.

        Raises:
            ValueError: shapes or tokens that do not fit.
        """
        if return_loss:
            if image is None:
                raise ValueError("return_loss=True needs an image, got image=None.")
            text_loss, image_loss = self.losses(text, image, null_cond_prob)
            weight = self.settings.loss_img_weight
            return (text_loss + weight * image_loss) / (weight + 1)
        ids = self._text_ids(text, null_cond_prob)
        x, first = self._features(ids, self._image_tokens(image, ids.shape[0]))
        return self._all_logits(x, max(0, self.text_seq_len - first))

    def losses(
        self, text: Tensor, image: Tensor, null_cond_prob: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy of the text tokens and of the image tokens, in nats a token.

        Arguments as in `forward`. A rank that shares the sequence with others gets its part, which
        those of the others make the whole when they are added.
        """
        ids = self._text_ids(text, null_cond_prob)
        tokens = self._image_tokens(image, len(ids))
        if not tokens.shape[1]:
            raise ValueError("the loss needs at least one image token, got none.")
        x, first = self._features(ids, tokens)
        split = max(0, self.text_seq_len - first)
        last = max(0, self.text_seq_len + tokens.shape[1] - first)
        words, pixels = self._text_logits(x[:, :split]), self._image_logits(x[:, split:last])
        if self.sharing is None:
            return cross_entropy(words, ids[:, 1:]), cross_entropy(pixels, tokens)
        told, shown = ids[:, 1 + first :], tokens[:, max(0, first - self.text_seq_len) :]
        return (
            cross_entropy(words, told[:, : words.shape[1]], ids[:, 1:].numel()),
            cross_entropy(pixels, shown[:, : pixels.shape[1]], tokens.numel()),
        )

    # -- decoding ---------------------------------------------------------------------------

    def make_cache(
        self, batch: int, max_length: int | None = None, device: Device = None
    ) -> DecodingState:
        """An empty decoding state for `batch` rows of a whole text and picture."""
        return self.transformer.make_cache(batch, device=device)

    @torch.no_grad()
    def prefill(
        self,
        text: Tensor,
        image: Tensor | None = None,
        *,
        whole_text: bool = True,
        chunk: int | None = None,
    ) -> tuple[Tensor, DecodingState]:
        """Read a text, and perhaps the first tokens of a picture.

        Args:
            text: (batch, up to text_seq_len) int.
            image: (batch, fewer than image_seq_len) int, the first tokens of a picture.
            whole_text: the text is complete, and a picture follows. False: more text follows.
            chunk: read so many tokens at a time, which bounds the memory; None: all at once.

        Returns:
            logits of the next token: (batch, num_image_tokens), or where text follows
            (batch, num_text_tokens); and the state that `step` continues.

        Raises:
            ValueError: shapes or tokens that do not fit.
        """
        if whole_text:
            ids = self._text_ids(text)
            tokens = self._image_tokens(image, len(ids))
        else:
            ids = F.pad(self._words(text), (1, 0))
            tokens = ids.new_zeros(len(ids), 0)
        x = self._embed(ids, tokens)
        x, cache = in_chunks(self.transformer, x, self.make_cache(len(ids)), chunk)
        return self._next_logits(self._finish(x[:, -1:]), cache.position), cache

    @torch.no_grad()
    def step(self, token: Tensor, cache: DecodingState) -> tuple[Tensor, DecodingState]:
        """Read one more token a row, of the text or of the picture as the position tells.

        Args:
            token: (batch,) int.

        Returns:
            logits of the next token as in `prefill`, and the state, updated in place.

        Raises:
            ValueError: a token that is not (batch,), or a picture that is complete already.
        """
        if token.ndim != 1:
            raise ValueError(f"token must be (batch,), got shape {tuple(token.shape)}.")
        x = self._embed_more(token[:, None].long(), cache)
        x, cache = self.transformer.step(x, cache)
        return self._next_logits(self._finish(x), cache.position), cache

    @torch.no_grad()
    def extend(self, tokens: Tensor, cache: DecodingState) -> tuple[Tensor, DecodingState]:
        """Read many more tokens a row, of the text, of the picture, or of both.

        Args:
            tokens: (batch, count) int: words up to the end of the text, then tokens of a picture.

        Returns:
            logits (batch, count, total_tokens) of all these positions, as `forward` gives them;
            and the state, updated in place.

        Raises:
            ValueError: tokens that are not (batch, count), or more than the picture has.
        """
        if tokens.ndim != 2 or not tokens.shape[1] or tokens.is_floating_point():
            raise ValueError(
                "tokens must be (batch, count) of an int type with at least one token, got shape "
                f"{tuple(tokens.shape)} of {tokens.dtype}."
            )
        words = max(0, self.text_seq_len - cache.position)  # whose next token is a word
        x = self._embed_more(tokens.long(), cache)
        x, cache = self.transformer.extend(x, cache)
        return self._all_logits(self._finish(x), words), cache

    def _embed_more(self, tokens: Tensor, cache: DecodingState) -> Tensor:
        """Tokens (batch, count) that follow -> (batch, count, dim)."""
        end, count = self.text_seq_len + 1, tokens.shape[1]
        if cache.position + count > self.max_seq_len:
            more = "one more token" if count == 1 else f"{count} more tokens"
            raise ValueError(
                f"the sequence must fit into max_seq_len={self.max_seq_len}, got {more} "
                f"at position {cache.position}."
            )
        place = cache.position if cache.place is None else cache.place
        words = max(0, end - cache.position)
        text, rest = tokens[:, :words], tokens[:, words:]
        check_range("token" if count == 1 else "tokens", text, self.num_text_tokens)
        check_range("token" if count == 1 else "tokens", rest, self.num_image_tokens)
        if not words:
            return self._embed_image(tokens, place - end)
        x = self._embed_text(text, place)
        return torch.cat((x, self._embed_image(rest, 0)), 1) if rest.shape[1] else x

    def example_inputs(self, length: int | None = None) -> tuple[Tensor, ...]:
        """A whole text and the tokens of a picture, or of its beginning, without values."""
        words, length = self.text_seq_len, self.max_seq_len if length is None else length
        sizes = (words, max(0, length - words))
        return tuple(torch.empty(1, n, dtype=torch.long, device="meta") for n in sizes)

    # -- embeddings -------------------------------------------------------------------------

    def _features(self, ids: Tensor, tokens: Tensor) -> tuple[Tensor, int]:
        """(batch, positions, dim) before the logits, and the first position: 0, or that of the own
        part where others have the rest; the last token of a picture is not read."""
        tokens, context = tokens[:, : self.image_seq_len - 1], None
        if self.sharing is None:
            x = self._embed(ids, tokens)
        else:
            context = self.sharing.of_whole(self, ids.shape[1] + tokens.shape[1])
            x = self._embed_part(ids, tokens, *context.spans[context.part])
        if self.settings.stable:
            x = x * 0.1 + x.detach() * 0.9  # a tenth of the gradient for the embeddings
        first = 0 if context is None else context.first
        return self._finish(self.transformer(x, context)), first

    def _finish(self, x: Tensor) -> Tensor:
        if self.settings.stable:
            x = x / self._largest(x)
        return self.norm(x)

    def _largest(self, x: Tensor) -> Tensor:
        if self.settings.compat is not None:
            return x.amax(-1, keepdim=True).detach()
        return x.abs().amax(-1, keepdim=True).clamp(min=1e-12).detach()

    def _embed(self, ids: Tensor, tokens: Tensor) -> Tensor:
        words = self._embed_text(ids, 0)
        return torch.cat((words, self._embed_image(tokens, 0)), 1) if tokens.shape[1] else words

    def _embed_part(self, ids: Tensor, tokens: Tensor, first: int, last: int) -> Tensor:
        """Positions [first, last) of `_embed`; all embeddings take part, if only in nothing."""
        split = ids.shape[1]
        start = max(0, first - split)
        words = self._embed_text(ids[:, first:last], first)
        return torch.cat(
            (words, self._embed_image(tokens[:, start : max(0, last - split)], start)), 1
        )

    def _embed_text(self, ids: Tensor, first: int | Tensor) -> Tensor:
        x = self._rows(ids) if self._tied else self.text_emb(ids)
        if not self.settings.rotary_emb:
            places = torch.arange(ids.shape[1], device=ids.device) + first
            x = x + self.text_pos_emb(places)
        return x

    def _embed_image(self, tokens: Tensor, first: int | Tensor) -> Tensor:
        x = self._rows(tokens + self.num_text_tokens) if self._tied else self.image_emb(tokens)
        if not self.settings.rotary_emb:
            places = torch.arange(tokens.shape[1], device=tokens.device) + first
            row, column = places // self.grid[1], places % self.grid[1]
            x = x + self.row_emb[row] + self.column_emb[column]
        return x

    @property
    def _tied(self) -> bool:
        return self.settings.share_input_output_emb

    def _rows(self, tokens: Tensor) -> Tensor:
        """Embeddings of tokens (any shape) that are the rows of the output layer."""
        return F.embedding(tokens, matrix(self.to_logits, self.settings.dim))

    # -- logits -----------------------------------------------------------------------------

    def _next_logits(self, x: Tensor, position: int) -> Tensor:
        """x (batch, 1, dim) of the latest position -> logits of the token at `position`."""
        is_text = position <= self.text_seq_len
        return (self._text_logits(x) if is_text else self._image_logits(x))[:, 0]

    def _all_logits(self, x: Tensor, split: int) -> Tensor:
        """x (batch, positions, dim) -> (batch, positions, total_tokens); words follow the first
        `split` positions, and where a token cannot be stands the lowest finite value."""
        words, pixels = self._text_logits(x[:, :split]), self._image_logits(x[:, split:])
        least = torch.finfo(words.dtype).min
        words = F.pad(words, (0, self.num_image_tokens), value=least)
        pixels = F.pad(pixels, (self.num_text_tokens, 0), value=least)
        return torch.cat((words, pixels), 1)

    def _text_logits(self, x: Tensor) -> Tensor:
        return self._some_logits(x, slice(self.num_text_tokens))

    def _image_logits(self, x: Tensor) -> Tensor:
        return self._some_logits(x, slice(self.num_text_tokens, None))

    def _some_logits(self, x: Tensor, tokens: slice) -> Tensor:
        """x (batch, positions, dim) -> the logits of some of the tokens, at no cost for others."""
        if not is_plain(self.to_logits):
            return self.to_logits(x)[..., tokens]
        return linear(x, self.to_logits.weight[tokens], self.to_logits.bias[tokens])

    # -- inputs -----------------------------------------------------------------------------

    def _text_ids(self, text: Tensor, null_cond_prob: float = 0.0) -> Tensor:
        """Start token, text, and for every missing word the padding of its position."""
        text = self._words(text)
        text = F.pad(text, (0, self.text_seq_len - text.shape[1]))
        if null_cond_prob > 0:
            drawn = uniform(text, 1)
            drawn = drawn if self.sharing is None else self.sharing.agreed(drawn)
            text = text.masked_fill(drawn < null_cond_prob, 0)
        padding = torch.arange(self.settings.num_text_tokens, self.num_text_tokens)
        return F.pad(torch.where(text == 0, padding.to(text.device), text), (1, 0))

    def _words(self, text: Tensor) -> Tensor:
        return checked_text(text, self.text_seq_len, self.num_text_tokens)

    def _image_tokens(self, image: Tensor | None, batch: int) -> Tensor:
        """Image tokens (batch, any) of pictures or tokens; none for None."""
        if image is None:
            return torch.zeros(batch, 0, dtype=torch.long, device=device_of(self.to_logits))
        if image.ndim == 4:
            image = self.encode(image)
        return checked_image(image, batch, self.grid, self.num_image_tokens)

    def encode(self, images: Tensor) -> Tensor:
        """Pictures (batch, channels, height, width) in [0, 1] -> tokens (batch, image_seq_len).

        Raises:
            ValueError: there is no VAE, or it makes another number of tokens.
        """
        tokens = self._need_vae().get_codebook_indices(images)
        if tokens.shape[1:] != (self.image_seq_len,):
            raise ValueError(
                f"the VAE must give {self.image_seq_len} tokens a picture, got shape "
                f"{tuple(tokens.shape)}; its grid must be {self.grid[0]} x {self.grid[1]}."
            )
        return tokens.to(device_of(self.to_logits))

    def _need_vae(self) -> ImageTokenizerLike:
        if self.vae is None:
            raise ValueError(
                "pictures need a VAE, and this model has none; give vae= to the constructor, or "
                "use tokens (generate_image_tokens, image=tokens)."
            )
        return self.vae
