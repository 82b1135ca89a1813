"""What every model and layer computes, bit for bit: to hold a refactoring to what was before.

    python benchmarks/digests.py record FILE     # at the old commit
    python benchmarks/digests.py compare FILE    # at the new one; exits 1 where a bit differs

Digests are those of float32 results on one thread, under fixed seeds: the weights that a
constructor draws, and under weights that follow from their names alone, outputs, losses,
gradients, decoding and generation. Compare on the same machine: another processor rounds
otherwise. To read another commit by the cases of this one, set PYTHONPATH to the src of its
worktree.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "models"))

from zoo import CASES, Case

from foveal import layers as L
from foveal import models as M
from foveal import patterns as P

LONG = {"num_tokens": 20, "dim": 8, "heads": 2, "dim_head": 4, "max_seq_len": 256}
WINDOW = P.SlidingWindow(9)


def tokens(length: int, most: int = 20) -> Tensor:
    return torch.randint(1, most, (2, length), generator=torch.Generator().manual_seed(1))


def features(*shape: int) -> Tensor:
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(2))


def _long(cls: Any, length: int = 200, **options: Any) -> Case:
    return Case(lambda: cls(**LONG, **options), lambda: (tokens(length),))


LONG_CASES: dict[str, Case] = {
    "transformer long": _long(
        M.TransformerLM, depth=2, pattern=[WINDOW, P.Strided(8)], kv_heads=1, dropout=0.1
    ),
    "transformer long pyramid": _long(M.TransformerLM, depth=1, pattern=P.Pyramid(4, causal=True)),
    "hourglass long": _long(M.HourglassTransformerLM, depth=(1, 1, 1), dropout=0.1),
    "hourglass long relative": _long(
        M.HourglassTransformerLM, depth=(1, 1, 1), positions="relative", pattern=WINDOW
    ),
    "htransformer long": _long(
        M.HTransformer1D, depth=2, block_size=8, causal=True, dropout=0.1, kv_heads=1
    ),
    "htransformer long coarse": _long(
        M.HTransformer1D, depth=1, block_size=8, relative_bias=True, reversible=True
    ),
    "dalle long": Case(
        lambda: M.DALLE(
            dim=12, heads=2, dim_head=6, num_text_tokens=11, text_seq_len=9, num_image_tokens=7,
            image_grid=(9, 10), depth=4, attn_types=("full", "axial_row", "conv_like", "sparse"),
            attn_dropout=0.1, ff_dropout=0.1,
        ),
        lambda: (tokens(7, 11), tokens(90, 7)),
        options={"return_loss": True},
    ),
}  # fmt: skip

DALLE_SIZES = {"dim": 12, "seq_len": 25, "image_size": 4, "heads": 2, "dim_head": 6}
H_SIZES = {"heads": 2, "dim_head": 4, "block_size": 4}

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[Tensor, ...]]] = {
    "self attention": (lambda: L.SelfAttention(8, WINDOW, 2, 4), (features(70, 8),)),
    "self attention groups": (
        lambda: L.SelfAttention(8, P.Full(True), 2, 4, kv_heads=1, rotary=False, dropout=0.1),
        (features(13, 8),),
    ),
    "cross attention": (lambda: L.CrossAttention(8, 2, 4), (features(13, 8), features(9, 8))),
    "feed forward": (lambda: L.FeedForward(8, 2, "geglu", 0.1), (features(13, 8),)),
    "rotary": (lambda: L.Rotary(4), (features(13, 2, 4),)),
    "relative attention": (
        lambda: L.RelativeAttention(8, WINDOW, 2, 4, 1, L.Relative(8, 2, 4)),
        (features(70, 8),),
    ),
    "block": (lambda: L.Block(8, WINDOW, 2, 4, activation="swiglu"), (features(13, 8),)),
    "stack": (lambda: L.Stack(8, 2, [WINDOW, P.Full(True)], 2, 4), (features(13, 8),)),
    "halo": (lambda: L.HaloAttention(8, 4, 1, 4, 2), (features(8, 13, 10),)),
    "halo split": (
        lambda: L.HaloAttention(8, 4, 2, 4, 2, stride=2, rel_pos="split", padding="attend"),
        (features(8, 12, 20),),
    ),
    "halo big": (
        lambda: L.HaloAttention(8, 8, 3, 4, 2, dim_out=4, dropout=0.1),
        (features(8, 29, 31),),
    ),
    "dalle full": (
        lambda: L.Attention(12, 25, heads=2, dim_head=6),
        (features(24, 12),),
    ),
    "dalle stable": (
        lambda: L.Attention(12, 25, heads=2, dim_head=6, stable=True, causal=False, dropout=0.1),
        (features(24, 12),),
    ),
    "dalle conv": (
        lambda: L.SparseConvCausalAttention(**DALLE_SIZES, kernel_size=3),
        (features(24, 12),),
    ),
    "dalle rows": (lambda: L.SparseAxialCausalAttention(**DALLE_SIZES), (features(24, 12),)),
    "dalle columns": (
        lambda: L.SparseAxialCausalAttention(**DALLE_SIZES, axis=1),
        (features(24, 12),),
    ),
    "dalle sparse": (
        lambda: L.SparseAttention(12, 96, heads=2, dim_head=6, text_seq_len=32),
        (features(96, 12),),
    ),
    "dssa": (lambda: L.DSSA(8, 2, 4, window_size=3), (features(8, 7, 8),)),
    "separable": (
        lambda: L.SeparableAttention(8, 2, 3, grid=(3, 3)),
        (features(7, 8, 8),),
    ),
    "h attention": (lambda: L.HAttention1D(8, **H_SIZES, relative_bias=True), (features(37, 8),)),
    "h causal": (lambda: L.CausalHAttention1D(8, **H_SIZES), (features(37, 8),)),
    "h cross": (lambda: L.HCrossAttention1D(8, **H_SIZES), (features(13, 8), features(21, 8))),
    "shifted": (
        lambda: L.PreShiftTokens((-1, 0, 1), L.FeedForward(8)),
        (features(13, 8),),
    ),
    "reversible": (
        lambda: L.ReversibleSequence([(L.FeedForward(8), L.FeedForward(8)) for _ in range(2)]),
        (features(13, 8),),
    ),
    "peg": (lambda: L.PEG(8), (features(8, 7, 5),)),
    "patch embed": (lambda: L.OverlappingPatchEmbed(8, 4), (features(8, 7, 5),)),
    "channel norm": (lambda: L.ChanLayerNorm(8), (features(8, 7, 5),)),
    "drop path": (lambda: L.DropPath(0.5), (features(13, 8),)),
    "relative positions": (lambda: L.RelPosEmb(4, 6, 4), (features(16, 4),)),
}


def digest(*tensors: Tensor) -> str:
    """The first digits of a sha256 over the bytes of tensors."""
    found = hashlib.sha256()
    for x in tensors:
        found.update(f"{tuple(x.shape)} {x.dtype}".encode())
        found.update(x.detach().contiguous().cpu().numpy().tobytes())
    return found.hexdigest()[:16]


def by_names(module: nn.Module) -> nn.Module:
    """The module with trained values that follow from their names alone."""
    with torch.no_grad():
        for name, p in module.named_parameters():
            p.copy_(torch.randn(p.shape, generator=_generator(name)) * 0.3)
    return module


def _generator(name: str) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(name.encode()))


def of_module(build: Callable[[], nn.Module], call: Callable[..., Any]) -> Iterator[Any]:
    """(what, digest) of a module: its weights, its output in both modes, its gradients."""
    torch.manual_seed(0)
    module = build()
    yield "weights", digest(*module.state_dict().values())
    by_names(module)
    for mode in ("eval", "train"):
        torch.manual_seed(7)
        out = call(module.train(mode == "train"))
        yield mode, digest(out)
    loss = out.square().mean()
    yield "loss", digest(loss)
    if loss.requires_grad:
        loss.backward()
    for name, p in module.named_parameters():
        if p.grad is not None:
            yield f"gradient {name}", digest(p.grad)
    yield "buffers", digest(*module.buffers())


def of_layer(build: Callable[[], nn.Module], inputs: tuple[Tensor, ...]) -> Iterator[Any]:
    given = [x.clone().requires_grad_() for x in inputs]
    yield from of_module(build, lambda module: module(*given))
    for at, x in enumerate(given):
        yield f"gradient of input {at}", digest(torch.zeros(()) if x.grad is None else x.grad)
    module = by_names(build()).eval()
    if hasattr(module, "make_cache") and len(given) == 1 and _is_causal(module):
        with torch.no_grad():
            (x,) = inputs
            out, cache = module.prefill(x[:, :5], module.make_cache(2, x.shape[1]))
            rows = [out]
            for token in x[:, 5:].split(1, 1):
                out, cache = module.step(token, cache)
                rows.append(out)
        yield "decoding", digest(*rows)


def _is_causal(module: nn.Module) -> bool:
    patterns = [one.pattern for one in module.modules() if hasattr(one, "pattern")]
    return bool(patterns) and all(getattr(one, "is_causal", False) for one in patterns)


def of_decoding(case: Case) -> Iterator[Any]:
    """(what, digest) of a model that reads token by token."""
    model = by_names(case.make()).eval()
    *first, last = case.inputs()
    if isinstance(model, M.DALLE):
        yield from _of_drawing(model, first[0], last)
    elif getattr(model, "is_causal", hasattr(model, "step")) and hasattr(model, "step"):
        logits, cache = model.prefill(*first, last[:, :5])
        rows = [logits]
        for token in last[:, 5:].unbind(1):
            logits, cache = model.step(token, cache)
            rows.append(logits)
        yield "decoding", digest(*rows)
        for options in ({"temperature": 0}, {"top_k": 5}, {"top_p": 0.8}, {"use_cache": False}):
            drawn = model.generate(*first, last[:, :5], 6, seed=3, **options)
            yield f"generate {options}", digest(drawn)
    if isinstance(model, M.CLIP):
        yield "text", digest(model.encode_text(first[0]))
        yield "image", digest(model.encode_image(last))
    if hasattr(model, "get_codebook_indices"):
        found = model.get_codebook_indices(last)
        yield "indices", digest(found)
        yield "decoded", digest(model.decode(found))


def _of_drawing(model: Any, text: Tensor, image: Tensor) -> Iterator[Any]:
    if image.is_floating_point():
        image = model.vae.get_codebook_indices(image)
    logits, cache = model.prefill(text, image[:, :2])
    rows = [logits]
    for token in image[:, 2:-1].unbind(1):
        logits, cache = model.step(token, cache)
        rows.append(logits)
    yield "decoding", digest(*rows)
    yield "words", digest(model.prefill(text[:, :2], whole_text=False)[0])
    yield "logits", digest(model(text, image))
    for options in ({"temperature": 0}, {"guidance": 2.0}, {"use_cache": False}):
        drawn = model.generate_image_tokens(text, 2, seed=3, **options)
        yield f"pictures {options}", digest(drawn)
    yield "texts", digest(model.generate_texts(text=text[:, :1], seed=3)[0])


def everything() -> dict[str, str]:
    """Digests by what they are of."""
    found = {}
    for name, case in {**CASES, **LONG_CASES}.items():
        for what, value in (*of_module(case.build, case), *of_decoding(case)):
            found[f"{name}: {what}"] = value
    for name, (build, inputs) in LAYERS.items():
        for what, value in of_layer(build, inputs):
            found[f"layer {name}: {what}"] = value
    return found


def differences(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """What is not as it was; what only one of them has is named, too."""
    said = [f"gone     {key}" for key in before if key not in now]
    said += [f"new      {key}" for key in now if key not in before]
    return said + [f"differs  {key}" for key, x in before.items() if now.get(key, x) != x]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=["record", "compare"])
    parser.add_argument("file", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    now = everything()
    if args.what == "record":
        args.file.write_text(json.dumps(now, indent=0))
        print(f"{len(now)} digests in {args.file}, of {M.__file__}")
        return 0
    said = differences(json.loads(args.file.read_text()), now)
    print("\n".join([*said, f"{len(now)} digests, {len(said)} differences"]))
    return 1 if said else 0


if __name__ == "__main__":
    sys.exit(main())
