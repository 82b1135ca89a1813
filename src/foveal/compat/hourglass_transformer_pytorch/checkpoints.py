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

import re
from typing import Any

import torch
from torch import nn

from foveal.compat.files import Checkpoint, Weights
from foveal.compat.upstream import Table, Upstream, load, must, take, to_ours, to_theirs
from foveal.models.hourglass.config import PACKAGE
from foveal.models.hourglass.model import HourglassTransformerLM

NAME = "hourglass-transformer-pytorch"
ROOT, VALLEY = "transformer.", "valley_transformer."
_DEFAULT_DIM_HEAD = 64

_RENAMES = (
    (r"\battn_shorten\.", "attn_resampling_pre_valley.layers.0."),
    (r"\battn_upsample\.", "attn_resampling_post_valley.layers.0."),
    (r"\bshorten\.", "downsample."),
    (r"\battn_norm\.", "0.norm."),
    (r"\battn\.", "0.fn."),
    (r"\bff_norm\.", "1.norm."),
    (r"\bff\.to_hidden\.", "1.fn.0."),
    (r"\bff\.to_out\.", "1.fn.3."),
)
"""Our names -> the package's, applied one after the other."""


def names(model: HourglassTransformerLM) -> Table:
    """The package's names of the parameters of a model -> ours."""
    table = {}
    for ours in model.state_dict():
        theirs = ours
        for pattern, new in _RENAMES:
            theirs = re.sub(pattern, new, theirs)
        table[theirs] = ours
    return table


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
    return load(model, to_ours(names(model), _joined(weights)), checkpoint.source)


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


def _joined(weights: Weights) -> Weights:
    """Queries, keys and values of self-attention in one matrix, as our layers hold them."""
    result = dict(weights)
    for name in weights:
        if name.endswith("0.fn.to_q.weight") and "attn_resampling" not in name:
            stem = name.removesuffix("to_q.weight")
            parts = result.pop(name), result.pop(stem + "to_kv.weight")
            result[stem + "to_qkv.weight"] = torch.cat(parts)
    return result


def _split(weights: Weights) -> Weights:
    """The same backwards."""
    result = dict(weights)
    for name in weights:
        if name.endswith("to_qkv.weight"):
            stem, joined = name.removesuffix("to_qkv.weight"), result.pop(name)
            inner = len(joined) // 3
            result[stem + "to_q.weight"] = joined[:inner].clone()
            result[stem + "to_kv.weight"] = joined[inner:].clone()
    return result


def _save(model: HourglassTransformerLM) -> Weights:
    c = model.settings
    if c.num_stages:  # a model without stages has nothing to get wrong
        must(NAME, compat=(c.compat, PACKAGE))
    must(
        NAME,
        positions=(c.position_kind, "absolute"),
        norms=(c.norms, "single"),
        tie_embeddings=(c.tie_embeddings, False),
        kv_heads=(c.kv_heads or c.heads, c.heads),
        activation=(c.activation, "gelu"),
        pattern=(c.pattern, None),
    )
    return _split(to_theirs(names(model), model.state_dict()))


def _recognises(weights: Weights) -> bool:
    return {"token_emb.weight", "pos_emb.weight", "to_logits.weight"} <= weights.keys() and any(
        name.endswith("0.fn.to_kv.weight") for name in weights
    )


HOURGLASS_PYTORCH = Upstream(
    package=NAME,
    compats=(PACKAGE,),
    recognises=_recognises,
    build=_build,
    writes=(HourglassTransformerLM,),
    save=_save,
)
