"""The models of dalle-pytorch 1.6.6: its signatures, its mathematics, its names of parameters.

They are foveal's DALLE, DiscreteVAE and CLIP with compat="dalle-pytorch-1.6.6"; the names of the
package's parameters stand in their state dicts. Differs from the package in: what decoding gets
wrong there (guidance that erases the caller's text, caches that are shared or unused) is right,
and generation is cached always.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.compat import autoregressive
from foveal.compat.autoregressive import eval_decorator
from foveal.compat.dalle_pytorch.names import clip_names, dalle_names, flat, rename_under, shaped
from foveal.compat.dalle_pytorch.transformer import DivideMax, Transformer
from foveal.compat.helpers import default, exists
from foveal.compat.upstream import Table, to_ours, to_theirs
from foveal.interop.files import Weights
from foveal.models import clip, dalle, vae
from foveal.models.dalle.config import PACKAGE
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


class _Named(nn.Module):
    """A model whose state dicts have the package's names, wherever it stands in another model.

    Attributes:
        table: the package's names of its parameters -> ours.
    """

    table: Table

    def _use_names(self, table: Table) -> None:
        self.table = table
        self.register_state_dict_post_hook(_to_theirs)
        self.register_load_state_dict_pre_hook(_to_ours)

    def own_state(self) -> Weights:
        """The weights under foveal's names, in which models are saved."""
        return to_ours(self.table, flat(self.state_dict()))


def _to_theirs(module: Any, state: Weights, prefix: str, _: Any) -> None:
    rename_under(prefix, state, lambda own: shaped(to_theirs(module.table, own), module))


def _to_ours(module: Any, state: Weights, prefix: str, *_: Any) -> None:
    rename_under(prefix, state, lambda own: to_ours(module.table, flat(own)))


class CLIP(_Named, clip.CLIP):
    """Which words go with which picture; see foveal.CLIP for the keywords."""

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
        super().__init__(
            dim_text=dim_text,
            dim_image=dim_image,
            dim_latent=dim_latent,
            num_text_tokens=num_text_tokens,
            text_enc_depth=text_enc_depth,
            text_seq_len=text_seq_len,
            text_heads=text_heads,
            num_visual_tokens=num_visual_tokens,
            visual_enc_depth=visual_enc_depth,
            visual_heads=visual_heads,
            visual_image_size=visual_image_size,
            visual_patch_size=visual_patch_size,
            channels=channels,
            mask_padding=False,
        )
        nn.init.ones_(self.temperature)
        self._use_names(clip_names(self))


class DALLE(_Named, dalle.DALLE):
    """Pictures from words; see foveal.DALLE for the keywords.

    Args:
        vae: a DiscreteVAE, or whatever has num_tokens, image_size, num_layers,
            get_codebook_indices and decode. It is frozen.
        sparse_attn, optimize_for_inference: accepted, as the package accepts them.
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
        super().__init__(
            dim=dim,
            vae=vae,
            num_text_tokens=num_text_tokens,
            text_seq_len=text_seq_len,
            depth=depth,
            heads=heads,
            dim_head=dim_head,
            reversible=reversible,
            attn_dropout=attn_dropout,
            ff_dropout=ff_dropout,
            attn_types=attn_types,
            loss_img_weight=loss_img_weight,
            stable=stable,
            sandwich_norm=sandwich_norm,
            shift_tokens=shift_tokens,
            rotary_emb=rotary_emb,
            shared_attn_ids=None if shared_attn_ids is None else tuple(shared_attn_ids),
            shared_ff_ids=None if shared_ff_ids is None else tuple(shared_ff_ids),
            share_input_output_emb=share_input_output_emb,
            compat=PACKAGE,
        )
        self.total_seq_len = self.max_seq_len
        self.loss_img_weight, self.stable = loss_img_weight, stable
        self._use_names(dalle_names(self))

    def forward(
        self,
        text: Tensor,
        image: Tensor | None = None,
        return_loss: bool = False,
        null_cond_prob: float = 0.0,
        cache: dict[str, Any] | None = None,
    ) -> Tensor:
        """As foveal.DALLE's; the caller's text is not changed.

        Args:
            cache: an empty dict, which the first call fills with all that it was given; each
                later call reads the last token of the picture alone, and gives its logits.
        """
        if cache is None:
            return super().forward(text, image, return_loss, null_cond_prob)
        if return_loss:
            raise ValueError("a loss needs the whole sequence, got a cache; leave one out.")
        if "state" not in cache:
            ids = self._text_ids(text, null_cond_prob)
            x = self._embed(ids, self._image_tokens(image, len(ids))[:, : self.image_seq_len - 1])
            x, cache["state"] = self.transformer.prefill(x, self.make_cache(len(ids)))
            logits = self._all_logits(self._finish(x))
        else:
            if image is None or not image.shape[1]:
                raise ValueError("with a filled cache the next token of the picture is needed.")
            logits, cache["state"] = self.step(image[:, -1], cache["state"])
            least = torch.finfo(logits.dtype).min
            logits = F.pad(logits, (self.num_text_tokens, 0), value=least)[:, None]
        cache["offset"] = cache.get("offset", 0) + logits.shape[1]
        return logits

    def forward_with_cond_scale(
        self,
        *args: Any,
        cond_scale: float = 1,
        cache: dict[str, Any] | None = None,
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

    def generate_images(  # type: ignore[override]
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
        return super().generate_images(
            text,
            clip=clip,
            filter_thres=filter_thres,
            temperature=temperature,
            img=img,
            num_init_img_tokens=num_init_img_tokens,
            cond_scale=cond_scale,
        )

    def generate_texts(  # type: ignore[override]
        self,
        tokenizer: Any,
        text: Any = None,
        *,
        filter_thres: float = 0.5,
        temperature: float = 1.0,
    ) -> tuple[Tensor, list[str]]:
        """Tokens (1, text_seq_len) and words of a text that begins with `text`, on any device."""
        return super().generate_texts(
            tokenizer, text, filter_thres=filter_thres, temperature=temperature
        )


# -- helpers ------------------------------------------------------------------------------------


class always:  # noqa: N801 - the package's name
    """A function of anything that gives one value."""

    def __init__(self, val: Any) -> None:
        self.val = val

    def __call__(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        return self.val


def is_empty(t: Tensor) -> bool:
    """Whether a tensor has no elements."""
    return t.numel() == 0


def masked_mean(t: Tensor, mask: Tensor, dim: int = 1) -> Tensor:
    """Mean over the real tokens: t (batch, tokens, dim), mask (batch, tokens) -> (batch, dim).

    NaN where nothing is real, as in the package.
    """
    return t.masked_fill(~mask[:, :, None], 0.0).sum(1) / mask.sum(1)[..., None]


def prob_mask_like(shape: Any, prob: float, device: Any) -> Tensor:
    """Bools that are True with a probability."""
    return torch.rand(shape, device=device) < prob


def set_requires_grad(model: nn.Module, value: bool) -> None:
    """Let all parameters be trained, or none."""
    model.requires_grad_(value)


def log(t: Tensor, eps: float = 1e-20) -> Tensor:
    """Logarithm of what is at least eps."""
    return t.clamp(min=eps).log()


def gumbel_noise(t: Tensor) -> Tensor:
    """Gumbel noise of the shape of t."""
    return -log(-log(torch.rand_like(t)))


def gumbel_sample(t: Tensor, temperature: float = 1.0, dim: int = -1) -> Tensor:
    """One index along `dim`, drawn by the logits t."""
    return (t / temperature + gumbel_noise(t)).argmax(dim)


def top_k(logits: Tensor, thres: float = 0.5) -> Tensor:
    """All but the largest logits (batch, num_tokens) at -inf; `thres` is the share that goes."""
    return autoregressive.top_k(logits, thres)


class SharedEmbedding(nn.Embedding):
    """An embedding whose rows are some of the rows of an output layer."""

    def __init__(self, linear: nn.Linear, start_index: int, end_index: int, **kwargs: Any) -> None:
        super().__init__(end_index - start_index, linear.weight.shape[1], **kwargs)
        del self.weight
        self.linear = linear
        self.start_index, self.end_index = start_index, end_index

    def forward(self, input: Tensor) -> Tensor:
        """Indices (any shape) -> (same shape, dim)."""
        return F.embedding(
            input,
            self.linear.weight[self.start_index : self.end_index],
            self.padding_idx,
            self.max_norm,
            self.norm_type,
            self.scale_grad_by_freq,
            self.sparse,
        )
