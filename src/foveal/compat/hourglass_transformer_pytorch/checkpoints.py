"""Checkpoints of hourglass-transformer-pytorch.

| the package (default) | corrected (compat=None) |
|---|---|
| the mean of a group counts the zeros of the shift and the padding | counts real tokens only |
| resampling attention sees its own group; when expanding, one coarse token | the whole past |
| the zeros of the shift are keys of that attention | they are not there |
| with padding on the left, real tokens see later ones | nothing leaks |
| lengths that the factor does not divide raise NameError | any length (in both) |

Attention over a single key never trained its queries, so a checkpoint with attention resampling
needs some fine-tuning after the correction; the other corrections need none.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from foveal.compat.upstream import Upstream, load, take
from foveal.interop.files import Checkpoint, Weights
from foveal.models.hourglass.config import PACKAGE
from foveal.models.hourglass.model import HourglassTransformerLM

NAME = "hourglass-transformer-pytorch"
ROOT, VALLEY = "transformer.", "valley_transformer."
_DEFAULT_DIM_HEAD = 64

_BLOCK = {
    "0.norm": "attn_norm",
    "0.fn.to_out": "attn.to_out",
    "1.norm": "ff_norm",
    "1.fn.0": "ff.to_hidden",
    "1.fn.3": "ff.to_out",
}
_STAGE = {
    "downsample": "shorten",
    "upsample": "upsample",
    "norm_out": "norm_out",
    "attn_resampling_pre_valley.layers.0": "attn_shorten",
    "attn_resampling_post_valley.layers.0": "attn_upsample",
}


def _build(checkpoint: Checkpoint, config: dict[str, Any], compat: str | None) -> nn.Module:
    weights = checkpoint.weights
    shapes = _shapes(weights)
    given = config.get("shorten_factor")
    if isinstance(given, int) and not isinstance(shapes["depth"], int):
        config = {**config, "shorten_factor": (given,) * _nesting(shapes["depth"])}
    options = take(config, shapes, NAME)
    options |= _heads(weights, config)
    depth = options["depth"]
    if not isinstance(depth, int) and options.get("shorten_factor") is None:
        raise ValueError(
            f"{NAME} weights do not say by which factor they shorten; pass "
            "config=dict(shorten_factor=...)."
        )
    if isinstance(depth, int):
        options["shorten_factor"] = None
    model = HourglassTransformerLM(
        **options, positions="absolute", norms="single", compat=compat, rotary=False
    )
    return load(model, _renamed(weights), checkpoint.source)


def _shapes(weights: Weights) -> dict[str, Any]:
    """Keywords of the constructor that the weights tell."""
    num_tokens, dim = weights["token_emb.weight"].shape
    shapes = {
        "num_tokens": num_tokens,
        "dim": dim,
        "max_seq_len": weights["pos_emb.weight"].shape[0],
        "depth": _depth(weights, ROOT),
    }
    if isinstance(shapes["depth"], int):
        return shapes
    shapes["attn_resampling"] = any(".attn_resampling_" in name for name in weights)
    factors = tuple(
        weights[name].shape[1] // dim
        for name in sorted((n for n in weights if n.endswith("downsample.proj.weight")), key=len)
    )
    shapes["updown_sample_type"] = "linear" if factors else "naive"
    if factors:
        shapes["shorten_factor"] = factors
    return shapes


def _depth(weights: Weights, prefix: str) -> Any:
    if not any(name.startswith(prefix + VALLEY) for name in weights):
        return _count(weights, prefix)
    before, after = (_count(weights, f"{prefix}{n}_transformer.") for n in ("pre", "post"))
    return before, _depth(weights, prefix + VALLEY), after


def _nesting(depth: Any) -> int:
    return 0 if isinstance(depth, int) else 1 + _nesting(depth[1])


def _count(weights: Weights, prefix: str) -> int:
    start = prefix + "layers."
    return len({n.removeprefix(start).split(".")[0] for n in weights if n.startswith(start)})


def _heads(weights: Weights, config: dict[str, Any]) -> dict[str, int]:
    """heads and dim_head: the weights give their product, the config or the defaults one."""
    inner = next(v.shape[0] for n, v in weights.items() if n.endswith("to_q.weight"))
    heads, dim_head = config.get("heads"), config.get("dim_head")
    if heads is None:
        heads = inner // (dim_head or _DEFAULT_DIM_HEAD)
    if dim_head is None and heads:
        dim_head = inner // heads
    if not heads or heads * (dim_head or 0) != inner:
        raise ValueError(
            f"heads={config.get('heads')} and dim_head={config.get('dim_head')} do not fit the "
            f"weights, which have heads * dim_head = {inner}; pass config=dict(heads=...)."
        )
    return {"heads": heads, "dim_head": dim_head or inner // heads}


def _renamed(weights: Weights) -> Weights:
    result: Weights = {}
    for name, value in weights.items():
        if not name.startswith(ROOT):
            result[name] = value
            continue
        stage, rest = _split(name.removeprefix(ROOT))
        result[ROOT + stage + _in_stage(rest)] = value
    return _joined(result)


def _split(name: str) -> tuple[str, str]:
    """The stages that a name goes through, and what is left of it."""
    stage = ""
    while name.startswith(VALLEY) and not name.startswith(VALLEY + "layers."):
        stage, name = stage + VALLEY, name.removeprefix(VALLEY)
    return stage, name


def _in_stage(name: str) -> str:
    for theirs, ours in _STAGE.items():
        if name.startswith(theirs + "."):
            return ours + "." + _in_block(name.removeprefix(theirs + "."))
    head, layers, rest = name.partition("layers.")
    number, _, rest = rest.partition(".")
    return f"{head}{layers}{number}.{_in_block(rest)}" if layers else name


def _in_block(name: str) -> str:
    for theirs, ours in {**_BLOCK, "0.fn": "attn"}.items():
        if name.startswith(theirs + "."):
            return ours + name.removeprefix(theirs)
    return name


def _joined(weights: Weights) -> Weights:
    """Queries, keys and values of self-attention in one matrix, as our layers hold them."""
    result = dict(weights)
    for name in weights:
        if name.endswith("attn.to_q.weight") and ".layers." in name:
            stem = name.removesuffix("to_q.weight")
            parts = result.pop(name), result.pop(stem + "to_kv.weight")
            result[stem + "to_qkv.weight"] = torch.cat(parts)
    return result


def _recognises(weights: Weights) -> bool:
    return {"token_emb.weight", "pos_emb.weight", "to_logits.weight"} <= weights.keys() and any(
        name.endswith("0.fn.to_kv.weight") for name in weights
    )


HOURGLASS_PYTORCH = Upstream(
    package=NAME, compats=(PACKAGE,), recognises=_recognises, build=_build
)
