"""A tiny model of every family and of each variant that computes otherwise, with inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from foveal import models as M
from foveal import patterns as P

TEXT = {"num_tokens": 20, "dim": 8, "heads": 2, "dim_head": 4, "max_seq_len": 64}
PICTURES = {"num_classes": 3, "drop_path_rate": 0.0}
DALLE = {
    "dim": 12,
    "heads": 2,
    "dim_head": 6,
    "num_text_tokens": 11,
    "text_seq_len": 3,
    "num_image_tokens": 7,
    "image_grid": (2, 3),
}
VAE = {"image_size": (6, 5), "num_tokens": 7, "codebook_dim": 5, "num_layers": 1, "hidden_dim": 4}
HALONET = {
    "depths": (1, 1),
    "dims": (8, 8),
    "heads": (2, 2),
    "strides": (1, 2),
    "block_size": 4,
    "halo_size": 1,
    "stem_dim": 4,
    "stem_kernel": 3,
    "stem_pool": False,
}
SEPVIT = {
    "depths": (1, 1),
    "dims": (8, 16),
    "heads": (2, 2),
    "window_sizes": ((2,), (2,)),
    "strides": (2, 2),
    "image_size": 16,
}
CLIP = {
    "dim_text": 8,
    "dim_image": 8,
    "dim_latent": 4,
    "num_text_tokens": 20,
    "text_enc_depth": 1,
    "text_seq_len": 5,
    "text_heads": 1,
    "visual_enc_depth": 1,
    "visual_heads": 1,
    "visual_image_size": (6, 5),
    "visual_patch_size": 3,
}


class Case(NamedTuple):
    """How to make a model, and inputs of odd sizes for it.

    takes_mask: forward has a `mask` (batch, tokens) of the first input.
    """

    build: Callable[..., nn.Module]
    inputs: Callable[[], tuple[Tensor, ...]]
    takes_mask: bool = False
    options: dict[str, Any] = {}  # noqa: RUF012 - of forward

    def make(self) -> nn.Module:
        """The model, in training mode, the same each time."""
        torch.manual_seed(0)
        return self.build()

    def __call__(self, model: nn.Module, *inputs: Tensor) -> Tensor:
        """What the model makes of inputs, as one tensor."""
        return model(*(inputs or self.inputs()), **self.options)


def _tokens(length: int = 13, most: int = 20) -> Tensor:
    torch.manual_seed(1)
    return torch.randint(1, most, (2, length))


def _pictures(*size: int) -> Tensor:
    torch.manual_seed(1)
    return torch.rand(2, 3, *size)


def _text(cls: Any, **options: Any) -> Case:
    return Case(lambda: cls(**TEXT, **options), lambda: (_tokens(),), takes_mask=True)


def _dalle(**options: Any) -> Case:
    def build() -> nn.Module:
        return M.DALLE(**{**DALLE, **options})

    return Case(build, lambda: (_tokens(3, 11), _tokens(6, 7)), options={"return_loss": True})


def _halo(**options: Any) -> Case:
    return Case(lambda: M.HaloNet(**PICTURES, **HALONET, **options), lambda: (_pictures(17, 14),))


CASES: dict[str, Case] = {
    "transformer": _text(M.TransformerLM, depth=2, pattern=[P.SlidingWindow(5), P.Full(True)]),
    "transformer tied": _text(
        M.TransformerLM, depth=1, tie_embeddings=True, activation="swiglu", kv_heads=1
    ),
    "transformer pyramid": _text(M.TransformerLM, depth=1, pattern=P.Pyramid(4, causal=True)),
    "hourglass": _text(M.HourglassTransformerLM, depth=(1, (1, 1, 1), 1), shorten_factor=(2, 3)),
    "hourglass linear": _text(
        M.HourglassTransformerLM,
        depth=(1, 1, 1),
        attn_resampling=False,
        updown_sample_type="linear",
        positions="absolute",
    ),
    "hourglass relative": _text(
        M.HourglassTransformerLM, depth=(1, 1, 1), positions="relative", activation="geglu"
    ),
    "hourglass windows": _text(
        M.HourglassTransformerLM,
        depth=(1, 1, 1),
        positions="relative",
        pattern=P.SlidingWindow(4),
        tie_embeddings=True,
    ),
    "hourglass encoder": _text(M.HourglassTransformerLM, depth=(1, 1, 1), causal=False),
    "hourglass package": _text(
        M.HourglassTransformerLM,
        depth=(1, 1, 1),
        compat="hourglass-transformer-pytorch-0.0.6",
        norms="single",
        positions="absolute",
        shorten_factor=2,
    ),
    "htransformer": _text(
        M.HTransformer1D, depth=2, block_size=4, shift_tokens=True, relative_bias=True
    ),
    "htransformer causal": _text(
        M.HTransformer1D, depth=1, block_size=4, causal=True, shift_tokens=True
    ),
    "htransformer reversible": _text(M.HTransformer1D, depth=2, block_size=4, reversible=True),
    "htransformer full": _text(M.HTransformer1D, depth=1, attention="full", causal=True),
    "htransformer package": _text(
        M.HTransformer1D, depth=1, block_size=2, compat="h-transformer-1d-0.1.9"
    ),
    "classifier": _text(M.HTransformerClassifier, depth=1, block_size=4, num_classes=3),
    "classifier cls": _text(M.HTransformerClassifier, depth=1, block_size=4, pool="cls"),
    "seq2seq": Case(
        lambda: M.HTransformerSeq2Seq(
            **TEXT, enc_depth=1, dec_depth=1, enc_block_size=4, dec_block_size=4
        ),
        lambda: (_tokens(13), _tokens(7)),
    ),
    "halonet": _halo(),
    "halonet hybrid": _halo(conv_stages=(0,), padding="attend", final_dim=8),
    "sepvit": Case(
        lambda: M.SepVisionTransformer(**PICTURES, **SEPVIT), lambda: (_pictures(17, 14),)
    ),
    "sepvit compact": Case(
        lambda: M.SepViT(
            **PICTURES, dim=8, depth=(1, 1), heads=2, window_size=2, dim_head=4, ff_mult=2
        ),
        lambda: (_pictures(19, 30),),
    ),
    "dalle": _dalle(depth=5, attn_types=("full", "axial_row", "axial_col", "conv_like", "mlp")),
    "dalle paper": _dalle(depth=3, attn_types=("paper_row", "paper_col", "paper_conv")),
    "dalle sparse": _dalle(depth=1, attn_types=("sparse",), stable=True, sandwich_norm=True),
    "dalle tied": _dalle(depth=2, share_input_output_emb=True, rotary_emb=False),
    "dalle reversible": _dalle(depth=2, reversible=True, shared_attn_ids=(0,)),
    "dalle with vae": Case(
        lambda: M.DALLE(
            dim=12, heads=2, dim_head=6, depth=1, num_text_tokens=11, text_seq_len=3,
            vae=M.DiscreteVAE(**VAE),
        ),
        lambda: (_tokens(3, 11), _pictures(6, 5)),
        options={"return_loss": True},
    ),
    "clip": Case(
        lambda: M.CLIP(**CLIP),
        lambda: (_tokens(5), _pictures(6, 5)),
        options={"return_loss": True},
    ),
    "discrete vae": Case(
        lambda: M.DiscreteVAE(**VAE, num_resnet_blocks=1, kl_div_loss_weight=0.1),
        lambda: (_pictures(6, 5),),
        options={"return_loss": True},
    ),
    "vqvae": Case(
        lambda: M.VQVAE(**VAE), lambda: (_pictures(6, 5),), options={"return_loss": True}
    ),
}  # fmt: skip
