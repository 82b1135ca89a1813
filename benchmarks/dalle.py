"""DALLE beside dalle-pytorch: drawing, training, and its convolutional attention.

    pip install --no-deps -r peers.txt
    python benchmarks/dalle.py [--threads 2] [--rounds 3] [--only draw|train|conv]

One model of 8 layers (full, row, column, conv) of 512 features draws 1,024 tokens after 256 words
and takes training steps; the same weights in both packages. The package recomputes the sequence
for every token even with use_cache=True, so its time for a picture is extrapolated from 48 tokens
at lengths spread evenly over the picture. Prints ratios of medians taken in turn, and the extra
peak memory of a training step in a process of its own.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

import torch
from peers import peer
from timing import medians, peak_memory
from torch.nn.functional import scaled_dot_product_attention

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


def extra_memory(name: str) -> None:
    """Print the bytes that one training step adds to the process's peak."""
    ours, theirs = models()
    model = ours if name == "foveal" else theirs
    del ours, theirs
    text, image = inputs(4)
    before = peak_memory()
    step(model, text, image)
    print(peak_memory() - before)


def measured(name: str) -> int:
    command = [sys.executable, __file__, "--memory", name]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def train(rounds: int) -> None:
    both = dict(zip(("ours", "theirs"), models(), strict=True))
    text, image = inputs(4)
    took = medians({k: lambda m=m: step(m, text, image) for k, m in both.items()}, rounds)
    memory = [measured(name) for name in ("foveal", "dalle-pytorch")]
    print(
        f"training step, batch 4: {took['theirs'] / took['ours']:.2f} times as fast "
        f"({took['ours']:.2f} s), {memory[0] / memory[1]:.2f} of the extra peak memory "
        f"({memory[0] / 2**30:.2f} GiB)"
    )


def conv(rounds: int) -> None:
    """The convolutional layer at kernel 11, and dense causal attention with its projections."""
    from foveal.layers import Attention, SparseConvCausalAttention

    torch.manual_seed(0)
    options = {"dim": 512, "seq_len": 1280, "heads": 8, "dim_head": 64}
    kernel = {"image_size": SIDE, "kernel_size": 11}
    theirs = peer("dalle_pytorch.attention").SparseConvCausalAttention(**options, **kernel)
    layer = SparseConvCausalAttention(**options, **kernel)
    layer.load_state_dict(theirs.state_dict())
    dense = Attention(**options)
    x = torch.randn(1, 1280, 512, requires_grad=True)
    jobs = {"ours": layer, "theirs": theirs, "dense": dense}
    angles = peer("dalle_pytorch.transformer").Transformer(
        dim=8, depth=0, seq_len=1280, image_fmap_size=SIDE
    )

    def training(module: torch.nn.Module) -> None:
        module(x, rotary_pos_emb=angles.pos_emb).sum().backward()

    took = medians({k: lambda m=m: training(m) for k, m in jobs.items()}, rounds)
    print(
        f"conv layer, kernel 11, forward + backward, batch 1: {took['theirs'] / took['ours']:.1f} "
        f"times as fast; {took['dense'] / took['ours']:.2f} times dense causal attention's speed"
    )
    core(rounds)


def core(rounds: int) -> None:
    """The same without projections, beside scaled_dot_product_attention."""
    import foveal
    from foveal import patterns as P

    pattern = P.TextImage(257, P.Neighborhood(SIDE, 11, causal="corner"))
    q, k, v = (torch.randn(4, 8, 1280, 64, requires_grad=True) for _ in range(3))
    took = medians(
        {
            "ours": lambda: foveal.attend(q, k, v, pattern).sum().backward(),
            "dense": lambda: (
                scaled_dot_product_attention(q, k, v, is_causal=True).sum().backward()
            ),
        },
        rounds,
    )
    print(
        f"  its attention alone, batch 4: {took['dense'] / took['ours']:.2f} times causal SDPA's"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=("draw", "train", "conv"))
    parser.add_argument("--memory", metavar="PACKAGE")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.memory:
        extra_memory(args.memory)
        return
    print(f"torch {torch.__version__}, {args.threads} threads, float32, {SIZES}")
    for name, run in {"conv": conv, "train": train, "draw": draw}.items():
        if args.only in (None, name):
            run(args.rounds)


if __name__ == "__main__":
    main()
