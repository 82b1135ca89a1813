"""The models of dalle-pytorch 1.6.6: its signatures, its mathematics, its parameters.

DiscreteVAE is foveal's with compat="dalle-pytorch-1.6.6"; DALLE and CLIP are made of the parts in
`transformer.py`, and DALLE generates by foveal's model over the same weights. Differs from the
package in: what decoding gets wrong there (guidance that erases the caller's text, caches that
are shared or unused) is right.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.common.meta import on_meta
from foveal.compat.dalle_pytorch.clip import CLIP
from foveal.compat.dalle_pytorch.helpers import (
    SharedEmbedding,
    always,
    eval_decorator,
    gumbel_noise,
    gumbel_sample,
    is_empty,
    log,
    masked_mean,
    prob_mask_like,
    set_requires_grad,
    top_k,
)
from foveal.compat.dalle_pytorch.names import dalle_names, flat
from foveal.compat.dalle_pytorch.transformer import DivideMax, Transformer
from foveal.compat.helpers import default, exists
from foveal.compat.upstream import to_ours
from foveal.layers.linear import project
from foveal.models import dalle, vae
from foveal.models.dalle.config import PACKAGE, DALLEConfig
from foveal.models.dalle.tokenizer import config_with
from foveal.models.vae.networks import ResBlock

__all__ = [
    "DALLE",
    "CLIP",
    "DiscreteVAE",
    "Transformer",
    "DivideMax",
    "ResBlock",
    "SharedEmbedding",
    "always",
    "is_empty",
    "masked_mean",
    "prob_mask_like",
    "set_requires_grad",
    "eval_decorator",
    "log",
    "gumbel_noise",
    "gumbel_sample",
    "top_k",
    "exists",
    "default",
]

NORMALIZATION = ((0.5, 0.5, 0.5, 0), (0.5, 0.5, 0.5, 1))


class DiscreteVAE(vae.DiscreteVAE):
    """Pictures to a grid of tokens, and back; see foveal.DiscreteVAE for the keywords."""

    def __init__(
        self,
        image_size: int = 256,
        num_tokens: int = 512,
        codebook_dim: int = 512,
        num_layers: int = 3,
        num_resnet_blocks: int = 0,
        hidden_dim: int = 64,
        channels: int = 3,
        smooth_l1_loss: bool = False,
        temperature: float = 0.9,
        straight_through: bool = False,
        reinmax: bool = False,
        kl_div_loss_weight: float = 0.0,
        normalization: Any = NORMALIZATION,
    ) -> None:
        super().__init__(
            image_size=image_size,
            num_tokens=num_tokens,
            codebook_dim=codebook_dim,
            num_layers=num_layers,
            num_resnet_blocks=num_resnet_blocks,
            hidden_dim=hidden_dim,
            channels=channels,
            smooth_l1_loss=smooth_l1_loss,
            temperature=temperature,
            straight_through=straight_through,
            reinmax=reinmax,
            kl_div_loss_weight=kl_div_loss_weight,
            normalization=normalization,
            compat=PACKAGE,
        )
        self.straight_through, self.reinmax = straight_through, reinmax
        self.kl_div_loss_weight = kl_div_loss_weight
        self.normalization = self.settings.normalization

    def norm(self, images: Tensor) -> Tensor:
        """Pictures (batch, channels, height, width) as the encoder wants them."""
        return self._normalize(images)


class AxialPositions(nn.Module):
    """Learned positions of a square picture: a row's and a column's, added.

    With the parameters of axial-positional-embedding.
    """

    def __init__(self, dim: int, side: int) -> None:
        super().__init__()
        self.weights = nn.ParameterList(
            [torch.randn(1, side, 1, dim), torch.randn(1, 1, side, dim)]
        )

    def forward(self, x: Tensor) -> Tensor:
        """Of the first tokens, as many as x (batch, tokens, dim) has: (1, tokens, dim)."""
        return (self.weights[0] + self.weights[1]).flatten(1, 2)[:, : x.shape[1]]


class DALLE(nn.Module):
    """Pictures from words.

    Args: as in foveal.DALLE.
        vae: a DiscreteVAE, or whatever has num_tokens, image_size, num_layers,
            get_codebook_indices and decode. It is frozen.
        sparse_attn, optimize_for_inference: accepted, as the package accepts them.

    Raises:
        ValueError: as foveal.DALLE, and for pictures that are no squares.
    """

    def __init__(
        self,
        *,
        dim: int,
        vae: Any,
        num_text_tokens: int = 10000,
        text_seq_len: int = 256,
        depth: int,
        heads: int = 8,
        dim_head: int = 64,
        reversible: bool = False,
        attn_dropout: float = 0.0,
        ff_dropout: float = 0,
        sparse_attn: Any = False,
        attn_types: Any = None,
        loss_img_weight: float = 7,
        stable: bool = False,
        sandwich_norm: bool = False,
        shift_tokens: bool = True,
        rotary_emb: bool = True,
        shared_attn_ids: Any = None,
        shared_ff_ids: Any = None,
        share_input_output_emb: bool = False,
        optimize_for_inference: bool = False,
    ) -> None:
        super().__init__()
        layers: dict[str, Any] = {
            "depth": depth,
            "heads": heads,
            "dim_head": dim_head,
            "reversible": reversible,
            "attn_dropout": attn_dropout,
            "ff_dropout": ff_dropout,
            "attn_types": attn_types,
            "stable": stable,
            "sandwich_norm": sandwich_norm,
            "shift_tokens": shift_tokens,
            "rotary_emb": rotary_emb,
            "shared_attn_ids": None if shared_attn_ids is None else tuple(shared_attn_ids),
            "shared_ff_ids": None if shared_ff_ids is None else tuple(shared_ff_ids),
        }
        own = {"dim": dim, "num_text_tokens": num_text_tokens, "text_seq_len": text_seq_len}
        self._options = {
            **own,
            **layers,
            "loss_img_weight": loss_img_weight,
            "share_input_output_emb": share_input_output_emb,
        }
        side = _side(config_with(DALLEConfig(**self._options), vae, ()).grid)
        words, count = num_text_tokens + text_seq_len, vae.num_tokens
        self.num_text_tokens, self.num_image_tokens = words, count
        self.text_seq_len, self.image_seq_len = text_seq_len, side * side
        self.total_tokens, self.total_seq_len = words + count, text_seq_len + side * side
        self.stable, self.loss_img_weight = stable, loss_img_weight
        learned = not rotary_emb
        self.text_pos_emb: Any = nn.Embedding(text_seq_len + 1, dim) if learned else always(0)
        self.image_pos_emb: Any = AxialPositions(dim, side) if learned else always(0)
        self.vae: Any = vae.requires_grad_(False) if isinstance(vae, nn.Module) else vae
        self.transformer = Transformer(
            dim=dim, seq_len=self.total_seq_len, image_fmap_size=side, **layers
        )
        if stable:
            self.norm_by_max = DivideMax(-1)
        self.to_logits = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, self.total_tokens))
        if share_input_output_emb:
            linear = cast(nn.Linear, self.to_logits[1])
            self.text_emb: nn.Embedding = SharedEmbedding(linear, 0, words)
            self.image_emb: nn.Embedding = SharedEmbedding(linear, words, words + count)
        else:
            self.text_emb = nn.Embedding(words, dim)
            self.image_emb = nn.Embedding(count, dim)

    def forward(
        self,
        text: Tensor,
        image: Tensor | None = None,
        return_loss: bool = False,
        null_cond_prob: float = 0.0,
        cache: dict[Any, Any] | None = None,
    ) -> Tensor:
        """Logits of every position, or the loss; the caller's text is not changed.

        Args:
            text: (batch, up to text_seq_len) int, 0 = padding.
            image: pictures (batch, channels, height, width), or tokens (batch, any).
            return_loss: (text loss + loss_img_weight * image loss) / (loss_img_weight + 1).
            null_cond_prob: probability of drawing a picture without its text.
            cache: an empty dict at first; each later call computes what it has not seen.

        Returns:
            (batch, new positions, total_tokens), the lowest finite value where a position cannot
            have a token; or the loss.

        Raises:
            ValueError: a text that is too long, or a loss without a picture.
        """
        ids = self._text_ids(text, null_cond_prob)
        if image is not None and image.ndim == 4:
            image = self.vae.get_codebook_indices(image)
        x = self._embed(ids, image)
        offset = 0 if cache is None else cache.get("offset", 0)
        out = self.transformer(x[:, offset:], cache=cache)
        if cache is not None:
            cache["offset"] = offset + out.shape[1]
        if self.stable:
            out = self.norm_by_max(out)
        logits = self._masked(project(self.to_logits, out), offset)
        if not return_loss:
            return logits
        if image is None:
            raise ValueError("return_loss=True needs an image, got image=None.")
        labels = torch.cat((ids[:, 1:], image + self.num_text_tokens), 1)
        split, logits = self.text_seq_len, logits.transpose(1, 2)
        words = F.cross_entropy(logits[:, :, :split], labels[:, :split])
        pixels = F.cross_entropy(logits[:, :, split:], labels[:, split:])
        return (words + self.loss_img_weight * pixels) / (self.loss_img_weight + 1)

    def _text_ids(self, text: Tensor, null_cond_prob: float) -> Tensor:
        """Start token, text, and for every missing word the padding of its position."""
        missing = self.text_seq_len - text.shape[-1]
        if missing < 0:
            raise ValueError(
                f"text must have at most text_seq_len={self.text_seq_len} tokens, got "
                f"{text.shape[-1]}."
            )
        text = F.pad(text, (0, missing))
        if null_cond_prob > 0:
            null = prob_mask_like((len(text),), null_cond_prob, text.device)
            text = text.masked_fill(null[:, None], 0)
        first = self.num_text_tokens - self.text_seq_len
        padding = torch.arange(first, self.num_text_tokens, device=text.device)
        return F.pad(torch.where(text == 0, padding, text), (1, 0))

    def _embed(self, ids: Tensor, image: Tensor | None) -> Tensor:
        """(batch, positions, dim); the last token of a whole picture is not read."""
        x = self.text_emb(ids) + self.text_pos_emb(torch.arange(ids.shape[1], device=ids.device))
        if image is not None and not is_empty(image):
            pixels = self.image_emb(image)
            x = torch.cat((x, pixels + self.image_pos_emb(pixels)), 1)
        x = x[:, : self.total_seq_len]
        return x * 0.1 + x.detach() * 0.9 if self.stable else x

    def _masked(self, logits: Tensor, offset: int) -> Tensor:
        """Logits (batch, positions from `offset` on, total_tokens), impossible ones lowest."""
        places = torch.arange(offset, offset + logits.shape[1], device=logits.device)
        tokens = torch.arange(self.total_tokens, device=logits.device)
        pixel, word = places >= self.text_seq_len, tokens < self.num_text_tokens
        return logits.masked_fill(pixel[:, None] == word, torch.finfo(logits.dtype).min)

    def forward_with_cond_scale(
        self,
        *args: Any,
        cond_scale: float = 1,
        cache: dict[Any, Any] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Logits, moved away from those without a text by `cond_scale`; 1 = not at all.

        The pass without a text has a cache of its own.
        """
        logits = self(*args, cache=cache, **kwargs)
        if cond_scale == 1:
            return logits
        bare = None if cache is None else cache.setdefault("without text", {})
        untold = self(*args, null_cond_prob=1.0, cache=bare, **kwargs)
        return untold + (logits - untold) * cond_scale

    # -- generation, by foveal's own model --------------------------------------------------

    def _foveal(self) -> dalle.DALLE:
        """foveal's model over the same weights, which decodes with its caches."""
        with on_meta():
            model = dalle.DALLE(vae=self.vae, compat=PACKAGE, **self._options)
        state = to_ours(dalle_names(model), flat(self.state_dict()))
        own = {name: value for name, value in state.items() if not name.startswith("vae.")}
        model.load_state_dict(own, strict=False, assign=True)
        return model

    def generate_images(
        self,
        text: Tensor,
        *,
        clip: Any = None,
        filter_thres: float = 0.5,
        temperature: float = 1.0,
        img: Tensor | None = None,
        num_init_img_tokens: int | None = None,
        cond_scale: float = 1.0,
        use_cache: bool = False,
    ) -> Any:
        """Pictures for texts (batch, words); with a CLIP also their scores.

        Args:
            filter_thres: share of the whole vocabulary that is cut off.
            use_cache: accepted; what is cached gives the same, and is always.
            Others as in foveal.DALLE.generate_images.
        """
        return self._foveal().generate_images(
            text,
            clip=clip,
            filter_thres=filter_thres,
            temperature=temperature,
            img=img,
            num_init_img_tokens=num_init_img_tokens,
            cond_scale=cond_scale,
        )

    def generate_texts(
        self,
        tokenizer: Any,
        text: Any = None,
        *,
        filter_thres: float = 0.5,
        temperature: float = 1.0,
    ) -> tuple[Tensor, list[str]]:
        """Tokens (1, text_seq_len) and words of a text that begins with `text`, on any device."""
        return self._foveal().generate_texts(
            tokenizer, text, filter_thres=filter_thres, temperature=temperature
        )


def _side(grid: tuple[int, int]) -> int:
    if grid[0] != grid[1]:
        raise ValueError(
            f"the grid of the VAE must be a square, got {grid[0]} x {grid[1]}; "
            "foveal.DALLE takes any."
        )
    return grid[0]
