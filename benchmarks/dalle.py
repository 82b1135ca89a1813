"""DALLE beside dalle-pytorch: drawing, training, and its convolutional attention.

    pip install --no-deps -r peers.txt
    python benchmarks/run.py dalle-step dalle-conv-layer dalle-unfold
    python benchmarks/dalle.py [--threads 2] [--rounds 3]

One model of 8 layers (full, row, column, conv) of 512 features draws 1,024 tokens after 256 words
and takes training steps; the same weights in both packages. The package recomputes the sequence
for every token even with use_cache=True, so its time for a picture is extrapolated from 48 tokens
at lengths spread evenly over the picture.
"""

from __future__ import annotations

import argparse
import functools
import time

import torch
from peers import peer
from timing import medians

from foveal.bench import Case
from foveal.bench.attention import DALLE as PATTERNS
from foveal.bench.attention import DIM, HEADS, flops, job, tensors
from foveal.bench.case import Job
from foveal.ops import attend

TYPES = ("full", "axial_row", "axial_col", "conv_like")
SIZES = {"dim": 512, "depth": 8, "heads": 8, "dim_head": 64, "attn_types": TYPES}
TOKENS = {"num_text_tokens": 10_000, "text_seq_len": 256}
CODEBOOK, SIDE = 8192, 32
EXTRAPOLATED = 48


def package_model() -> torch.nn.Module:
    module = peer("dalle_pytorch.dalle_pytorch")
    vae = module.DiscreteVAE(image_size=8 * SIDE, num_tokens=CODEBOOK, num_layers=3, hidden_dim=8)
    return module.DALLE(vae=vae, **SIZES, **TOKENS)


def models() -> tuple[torch.nn.Module, torch.nn.Module]:
    """Ours and the package's, with the same weights."""
    from foveal.interop import load_upstream

    torch.manual_seed(0)
    theirs = package_model()
    hparams = {**SIZES, **TOKENS}
    ours = load_upstream({"weights": theirs.state_dict(), "hparams": hparams})
    return ours, theirs.eval()


def inputs(batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    text = torch.randint(1, TOKENS["num_text_tokens"], (batch, TOKENS["text_seq_len"]))
    return text, torch.randint(0, CODEBOOK, (batch, SIDE * SIDE))


def package_token(model: torch.nn.Module, text: torch.Tensor, image: torch.Tensor) -> None:
    """One token as the package's generate_images(use_cache=True) draws it."""
    module = peer("dalle_pytorch.dalle_pytorch")
    with torch.no_grad():
        logits = model.forward_with_cond_scale(text, image, cond_scale=1.0, cache={})[:, -1, :]
        module.gumbel_sample(module.top_k(logits, thres=0.5), temperature=1.0)


def draw(rounds: int) -> None:
    ours, theirs = models()
    text, image = inputs(1)
    count = SIDE * SIDE
    package_token(theirs, text, image[:, :1])  # warm
    ours.generate_image_tokens(text, seed=0, img=image, num_init_img_tokens=count - 8)
    start = time.perf_counter()
    for i in range(EXTRAPOLATED):
        package_token(theirs, text, image[:, : (2 * i + 1) * count // (2 * EXTRAPOLATED)])
    package = (time.perf_counter() - start) / EXTRAPOLATED * count
    took = medians({"ours": lambda: ours.generate_image_tokens(text, seed=0)}, rounds)["ours"]
    print(
        f"drawing {count} tokens: {package / took:.0f} times as fast ({took:.1f} s; dalle-pytorch "
        f"{package:.0f} s, extrapolated from {EXTRAPOLATED} tokens)"
    )


def step(model: torch.nn.Module, text: torch.Tensor, image: torch.Tensor) -> None:
    model.train()
    model(text, image, return_loss=True).backward()
    model.zero_grad(set_to_none=True)


def make_step(contender: str, run: str, device: str) -> Job:
    model = models()[contender != "foveal"].to(device)
    text, image = (x.to(device) for x in inputs(4))
    return lambda: step(model, text, image)


def conv_layer(contender: str) -> torch.nn.Module:
    """The convolutional layer at kernel 11, or dense causal attention with its projections."""
    from foveal.layers import Attention, SparseConvCausalAttention

    torch.manual_seed(0)
    options = {"dim": 512, "seq_len": 1280, "heads": 8, "dim_head": 64}
    kernel = {"image_size": SIDE, "kernel_size": 11}
    if contender == "dense":
        return Attention(**options)
    if contender == "foveal":
        return SparseConvCausalAttention(**options, **kernel)
    return peer("dalle_pytorch.attention").SparseConvCausalAttention(**options, **kernel)


def make_conv(contender: str, run: str, device: str) -> Job:
    layer = conv_layer(contender).to(device)
    x = torch.randn(1, 1280, 512, device=device, requires_grad=True)
    angles = peer("dalle_pytorch.transformer").Transformer(
        dim=8, depth=0, seq_len=1280, image_fmap_size=SIDE
    )
    positions = angles.pos_emb.to(device)
    return lambda: layer(x, rotary_pos_emb=positions).sum().backward()


class Given(torch.nn.Module):
    """In place of a projection: its result."""

    def __init__(self, result: torch.Tensor) -> None:
        super().__init__()
        self.result = result

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.result


def make_unfold(kernel: int, contender: str, run: str, device: str) -> Job:
    """The attention alone: the package's layer without its projections, or attend()."""
    batch, length = 4, 1280
    qkv = tensors(batch, length, "float32", run, device)
    if contender != "dalle-pytorch":
        return job(lambda q, k, v: attend(q, k, v, PATTERNS[kernel], impl=contender), qkv)
    layer = peer("dalle_pytorch.attention").SparseConvCausalAttention(
        HEADS * DIM, length, image_size=SIDE, kernel_size=kernel, heads=HEADS, dim_head=DIM
    )
    flat = torch.cat([x.transpose(1, 2).flatten(2) for x in qkv], -1)
    # it computes one token more than it is given
    layer.to_qkv = Given(torch.nn.functional.pad(flat, (0, 0, 0, 1)))
    layer.to_out = torch.nn.Identity()
    shaped = torch.empty(batch, length, HEADS * DIM, device=device)
    return job(lambda q, k, v: layer(shaped), qkv)


CASES = [
    *(
        Case(
            f"dalle-unfold-{kernel}",
            f"convolutional attention of {kernel} without projections, 256 words and 32 x 32 "
            f"image tokens, batch 4, {HEADS} heads of {DIM}, float32",
            ("native", "tiled", "dalle-pytorch"),
            functools.partial(make_unfold, kernel),
            runs=("forward",),
            flops={"forward": flops(PATTERNS[kernel], 1280, 4)["forward"]},
            seconds=kernel / 1.5,
        )
        for kernel in PATTERNS
    ),
    Case(
        "dalle-step",
        "training step of DALLE, dim 512, 8 layers (full, row, column, conv), 256 words and 32 x "
        "32 image tokens, batch 4, float32",
        ("foveal", "dalle-pytorch"),
        make_step,
        runs=("training",),
        seconds=25.0,
    ),
    Case(
        "dalle-conv-layer",
        "convolutional attention layer, kernel 11, with projections and rotary positions; dim "
        "512, 256 words and 32 x 32 image tokens, batch 1, float32",
        ("foveal", "dense", "dalle-pytorch"),
        make_conv,
        runs=("training",),
        seconds=5.0,
    ),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, {args.threads} threads, float32, {SIZES}")
    draw(args.rounds)


if __name__ == "__main__":
    main()
