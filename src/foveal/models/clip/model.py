"""CLIP: a text tower and a picture tower that meet in one space."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foveal.common.checks import check_dense
from foveal.common.lazy import provided
from foveal.layers.weights import dtype_of, table
from foveal.models.base import Model
from foveal.models.clip.config import CLIPConfig
from foveal.models.dalle.transformer import Transformer
from foveal.models.pictures import as_pixels
from foveal.models.registry import register
from foveal.models.vocabulary import embedded

_DIM_HEAD = 64


@register({"clip": {}})
class CLIP(Model):
    """Which words go with which picture, for reranking and retrieval.

    Radford et al., "Learning Transferable Visual Models From Natural Language Supervision" (2021),
    with the architecture and the keywords of dalle-pytorch; `load_state_dict` takes that package's
    weights.

    Differs from dalle-pytorch 1.6.6 in: padding is left out of the text (mask_padding=False takes
    that back), a text without words gives zeros and not NaN, pictures of any rectangular size, and
    the first temperature is that of the paper.

    Args:
        config: a CLIPConfig; or give its keywords, which win where both are given. See CLIPConfig
            for their meaning.

    Raises:
        ValueError: an unknown keyword, or sizes that make no sense.

    Example:
        >>> import torch
        >>> from foveal.models import CLIP
        >>> clip = CLIP(
        ...     dim_text=32, dim_image=32, dim_latent=16, num_text_tokens=50, text_enc_depth=1,
        ...     text_seq_len=6, visual_enc_depth=1, visual_image_size=(8, 12), visual_patch_size=4,
        ... )
        >>> clip(torch.tensor([[7, 3, 0]]), torch.rand(1, 3, 8, 12)).shape
        torch.Size([1])
    """

    family = "clip"
    pipeline_tag = "zero-shot-image-classification"
    config_class = CLIPConfig
    settings: CLIPConfig

    def __init__(self, config: CLIPConfig | None = None, /, **options: Any) -> None:
        super().__init__()
        c = self.settings = CLIPConfig.resolve(config, options)
        self.text_emb = nn.Embedding(c.num_text_tokens, c.dim_text)
        self.text_pos_emb = nn.Embedding(c.text_seq_len, c.dim_text)
        words = (c.text_enc_depth, c.text_heads, c.text_seq_len, (1, 1), c.dropout)
        self.text_transformer = _tower(c.dim_text, *words)
        self.to_text_latent = nn.Linear(c.dim_text, c.dim_latent, bias=False)
        rows, columns = c.grid
        self.to_visual_embedding = nn.Linear(c.channels * c.visual_patch_size**2, c.dim_image)
        self.visual_pos_emb = nn.Embedding(rows * columns, c.dim_image)
        patches = (c.visual_enc_depth, c.visual_heads, 1, c.grid, c.dropout)
        self.visual_transformer = _tower(c.dim_image, *patches)
        self.to_visual_latent = nn.Linear(c.dim_image, c.dim_latent, bias=False)
        self.temperature = nn.Parameter(torch.tensor(0.07).log().neg())
        self.register_load_state_dict_pre_hook(_accept_package)

    def forward(
        self,
        text: Tensor,
        image: Tensor,
        text_mask: Tensor | None = None,
        return_loss: bool = False,
        gather: Callable[[Tensor], tuple[Tensor, int]] | None = None,
    ) -> Tensor:
        """How well each text fits its picture, or the contrastive loss.

        Args:
            text: (batch, up to text_seq_len) int, 0 = padding.
            image: (batch, channels, height, width), values from 0 to 1.
            text_mask: (batch, words) bool, True = real; what is not 0 unless given.
            return_loss: the mean cross-entropy, in nats, of finding the picture of each text and
                the text of each picture among those of the batch.
            gather: vectors (batch, dim_latent) -> those of several processes, one after the other,
                and the place of the first of them; texts and pictures are then sought among those
                of all, and the mean of the losses over processes is that of one large batch.

        Returns:
            (batch,) similarities times exp(temperature), or the scalar loss.

        Raises:
            ValueError: shapes that do not fit.
        """
        check_dense("text", text)
        check_dense("image", image)
        if text.shape[0] != image.shape[0]:
            raise ValueError(
                f"text and image must be pairs, got {len(text)} texts and {len(image)} pictures."
            )
        words, pictures = self.encode_text(text, text_mask), self.encode_image(image)
        scale = self.temperature.exp()
        if not return_loss:
            return (words * pictures).sum(1) * scale
        labels = torch.arange(len(text), device=words.device)
        if gather is None:
            similarity = words @ pictures.T * scale
            losses = F.cross_entropy(similarity, labels), F.cross_entropy(similarity.T, labels)
            return (losses[0] + losses[1]) / 2
        (all_words, first), (all_pictures, _) = gather(words), gather(pictures)
        right = labels + first
        of_words = F.cross_entropy(words @ all_pictures.T * scale, right)
        return (of_words + F.cross_entropy(pictures @ all_words.T * scale, right)) / 2

    def encode_text(self, text: Tensor, text_mask: Tensor | None = None) -> Tensor:
        """Texts (batch, words) -> unit vectors (batch, dim_latent).

        Raises:
            ValueError: text that is not (batch, up to text_seq_len).
        """
        length = self.settings.text_seq_len
        check_dense("text", text)
        check_dense("text_mask", text_mask)
        if text.ndim != 2 or text.shape[1] > length:
            raise ValueError(
                f"text must be (batch, up to text_seq_len={length}), got shape "
                f"{tuple(text.shape)}; cut it, or build the model with a larger text_seq_len."
            )
        if text.is_floating_point() or text.dtype == torch.bool:
            raise ValueError(f"text must hold tokens of an int type, got {text.dtype}.")
        text = text.long()
        if text_mask is None and self.settings.mask_padding:
            text_mask = text != 0
        words = embedded(self.text_emb, text, self.settings.num_text_tokens, "text")
        x = words + table(self.text_pos_emb, 0, text.shape[1])
        x = self.text_transformer(x, text_mask)
        if text_mask is None:
            x = x.mean(1)
        else:
            count = text_mask.sum(1, keepdim=True).clamp(min=1)
            x = x.masked_fill(~text_mask[:, :, None], 0.0).sum(1) / count
        return F.normalize(self.to_text_latent(x), dim=-1)

    def encode_image(self, image: Tensor) -> Tensor:
        """Pictures (batch, channels, height, width) -> unit vectors (batch, dim_latent).

        Raises:
            ValueError: pictures of another size than visual_image_size.
        """
        places = table(self.visual_pos_emb, 0, math.prod(self.settings.grid))
        x = self.to_visual_embedding(self._patches(image)) + places
        return F.normalize(self.to_visual_latent(self.visual_transformer(x).mean(1)), dim=-1)

    def example_inputs(self, length: int | None = None) -> tuple[Tensor, ...]:
        """A text of `length` tokens and a picture, without values."""
        c = self.settings
        count = c.text_seq_len if length is None else length
        text = torch.empty(1, count, dtype=torch.long, device="meta")
        return text, torch.empty(1, c.channels, *c.pixels, dtype=dtype_of(self), device="meta")

    def _patches(self, image: Tensor) -> Tensor:
        """(batch, patches, pixels and channels of a patch)."""
        c, size = self.settings, self.settings.visual_patch_size
        check_dense("image", image)
        expected = (c.channels, *c.pixels)
        if image.ndim != 4 or tuple(image.shape[1:]) != expected:
            raise ValueError(
                f"image must be (batch, channels, height, width) = (batch, "
                f"{', '.join(map(str, expected))}), got shape {tuple(image.shape)}; scale the "
                "pictures, or make the model with their size."
            )
        (height, width), (rows, columns) = c.pixels, c.grid
        image = F.pad(image, (0, columns * size - width, 0, rows * size - height))
        patches = image.unflatten(3, (columns, size)).unflatten(2, (rows, size))
        patches = as_pixels("image", patches, dtype_of(self.to_visual_embedding))
        return patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def _tower(
    dim: int, depth: int, heads: int, text_length: int, grid: tuple[int, int], dropout: float
) -> Transformer:
    """A transformer in which everything reads everything."""
    return Transformer(
        dim=dim,
        depth=depth,
        text_length=text_length,
        image_grid=grid,
        causal=False,
        heads=heads,
        dim_head=_DIM_HEAD,
        attn_dropout=dropout,
        ff_dropout=dropout,
        rotary_emb=False,
    )


def _accept_package(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Names of dalle-pytorch to ours, in place."""
    if any("_transformer.layers.layers." in name for name in state):
        provided("clip-of-dalle-pytorch")(module, state, prefix)
