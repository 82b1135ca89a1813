"""CLIP of dalle-pytorch."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.compat.dalle_pytorch.helpers import masked_mean
from foveal.compat.dalle_pytorch.transformer import Transformer


class CLIP(nn.Module):
    """Which words go with which picture.

    Args: as in foveal.CLIP; num_visual_tokens is not used.

    Raises:
        ValueError: patches that do not divide the picture.
    """

    def __init__(
        self,
        *,
        dim_text: int = 512,
        dim_image: int = 512,
        dim_latent: int = 512,
        num_text_tokens: int = 10000,
        text_enc_depth: int = 6,
        text_seq_len: int = 256,
        text_heads: int = 8,
        num_visual_tokens: int = 512,
        visual_enc_depth: int = 6,
        visual_heads: int = 8,
        visual_image_size: int = 256,
        visual_patch_size: int = 32,
        channels: int = 3,
    ) -> None:
        super().__init__()
        side, rest = divmod(visual_image_size, visual_patch_size)
        if rest:
            raise ValueError(
                f"visual_patch_size must divide visual_image_size, got {visual_patch_size=}, "
                f"{visual_image_size=}; foveal.CLIP takes any."
            )
        tower: dict[str, Any] = {"causal": False, "rotary_emb": False}
        self.text_emb = nn.Embedding(num_text_tokens, dim_text)
        self.text_pos_emb = nn.Embedding(text_seq_len, dim_text)
        self.text_transformer = Transformer(
            dim=dim_text, depth=text_enc_depth, seq_len=text_seq_len, heads=text_heads, **tower
        )
        self.to_text_latent = nn.Linear(dim_text, dim_latent, bias=False)
        self.visual_patch_size = visual_patch_size
        self.to_visual_embedding = nn.Linear(channels * visual_patch_size**2, dim_image)
        self.visual_pos_emb = nn.Embedding(side * side, dim_image)
        self.visual_transformer = Transformer(
            dim=dim_image, depth=visual_enc_depth, seq_len=side * side, heads=visual_heads, **tower
        )
        self.to_visual_latent = nn.Linear(dim_image, dim_latent, bias=False)
        self.temperature = nn.Parameter(torch.tensor(1.0))

    def forward(
        self,
        text: Tensor,
        image: Tensor,
        text_mask: Tensor | None = None,
        return_loss: bool = False,
    ) -> Tensor:
        """How well each text fits its picture (batch,), or the contrastive loss.

        Args:
            text: (batch, words) int.
            image: (batch, channels, height, width).
            text_mask: (batch, words) bool, True = real; all by default, padding too.
        """
        words = self.text_emb(text) + self.text_pos_emb.weight[: text.shape[1]]
        words = self.text_transformer(words, mask=text_mask)
        words = words.mean(1) if text_mask is None else masked_mean(words, text_mask)
        patches = self.to_visual_embedding(self._patches(image))
        pictures = self.visual_transformer(patches + self.visual_pos_emb.weight).mean(1)
        words = F.normalize(self.to_text_latent(words), dim=-1)
        pictures = F.normalize(self.to_visual_latent(pictures), dim=-1)
        if not return_loss:
            return (words * pictures).sum(-1) * self.temperature.exp()
        similarity = words @ pictures.T * self.temperature.exp()
        labels = torch.arange(len(text), device=text.device)
        both = F.cross_entropy(similarity, labels), F.cross_entropy(similarity.T, labels)
        return (both[0] + both[1]) / 2

    def _patches(self, image: Tensor) -> Tensor:
        """(batch, patches, pixels and channels of a patch)."""
        size = self.visual_patch_size
        patches = image.unflatten(3, (-1, size)).unflatten(2, (-1, size))
        return patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
