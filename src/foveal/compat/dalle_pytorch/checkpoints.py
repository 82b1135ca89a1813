"""Checkpoints of dalle-pytorch: DALLE, DiscreteVAE and CLIP, or their bare state dicts.

| dalle-pytorch 1.6.6 | corrected (compat=None) |
|---|---|
| rotary positions turn the values too | queries and keys only |
| `stable` divides by the largest feature, even where it is negative | by the largest magnitude |
| the VAE's `decode` gives normalized pictures | pictures in [0, 1] |
| CLIP reads padding like a word, unless a mask says otherwise | left out |

Faults that change no checkpoint's meaning are corrected in both: guidance that writes into the
caller's text, a cache that is not used or is shared between layers, a text mask that text ignores,
sequences padded to the full length, texts shorter than the full one that are not shifted. The
random blocks of "sparse" layers are not in a checkpoint, so these layers are never the same.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from foveal.compat.upstream import Upstream, load, take
from foveal.interop.files import Checkpoint, Weights
from foveal.models.config import check_keywords
from foveal.models.dalle.config import PACKAGE, DALLEConfig
from foveal.models.dalle.model import DALLE
from foveal.models.registry import family

LAYER = re.compile(
    r"transformer\.layers\.(?:layers\.(?P<i>\d+)\.(?P<b>[01])|blocks\.(?P<j>\d+)\.(?P<fg>[fg])\.net)"
    r"\.(?P<rest>.+)"
)
INNER = {
    "to_qkv.weight": "to_qkv.weight",
    "to_out.0.weight": "to_out.0.weight",
    "to_out.0.bias": "to_out.0.bias",
    "net.0.weight": "to_hidden.weight",
    "net.0.bias": "to_hidden.bias",
    "net.3.weight": "to_out.weight",
    "net.3.bias": "to_out.bias",
}
SHELL = {
    "text_emb.weight": "text_emb.weight",
    "image_emb.weight": "image_emb.weight",
    "to_logits.0.weight": "norm.weight",
    "to_logits.0.bias": "norm.bias",
    "to_logits.1.weight": "to_logits.weight",
    "to_logits.1.bias": "to_logits.bias",
    "text_pos_emb.weight": "text_pos_emb.weight",
    "image_pos_emb.weights.0": "row_emb",
    "image_pos_emb.weights.1": "column_emb",
}


TOWER_LAYER = re.compile(r"(?P<tower>.*_transformer\.)layers\.layers\.(?P<i>\d+)\.(?P<b>[01])\.")
CLIP_DIM_HEAD = 64  # in all of the package's towers


def is_vae(weights: Weights) -> bool:
    """Whether weights are those of a DiscreteVAE alone."""
    return {"codebook.weight", "encoder.0.0.weight"} <= weights.keys()


def is_dalle(weights: Weights) -> bool:
    """Whether weights are those of a DALLE."""
    return "to_logits.1.weight" in weights and any(LAYER.match(name) for name in weights)


def is_clip(weights: Weights) -> bool:
    """Whether weights are those of a CLIP."""
    return {"to_text_latent.weight", "to_visual_embedding.weight"} <= weights.keys()


def build(checkpoint: Checkpoint, config: dict[str, Any], compat: str | None) -> nn.Module:
    """The model of a checkpoint, a DALLE, a DiscreteVAE or a CLIP."""
    if is_clip(checkpoint.weights):
        return _build_clip(checkpoint, config, compat)
    if is_vae(checkpoint.weights):
        params = {**_read(checkpoint.extra, "hparams"), **config}
        vae = _make_vae(checkpoint.weights, params, compat)
        return load(vae, checkpoint.weights, checkpoint.source)
    return _build_dalle(checkpoint, config, compat)


# -- DALLE --------------------------------------------------------------------------------------


def _build_dalle(checkpoint: Checkpoint, config: dict[str, Any], compat: str | None) -> nn.Module:
    w = checkpoint.weights
    vae_weights = {
        name.removeprefix("vae."): value for name, value in w.items() if name.startswith("vae.")
    }
    vae_params = {**_read(checkpoint.extra, "vae_params"), **config.pop("vae_params", {})}
    own = [name for name in DALLEConfig.names() if name not in ("vae", "compat")]
    check_keywords("DALLE", config, own)
    known = {k: v for k, v in _read(checkpoint.extra, "hparams").items() if k in own}
    given = {**known, **config}
    options = take(given, _shapes(w, given), "dalle-pytorch")
    options.setdefault("attn_types", ("full",))
    grid = options["image_grid"] = _grid(w, options, vae_params)
    vae = None
    if is_vae(vae_weights):
        vae_params.setdefault("image_size", grid[0] * 2 ** _halvings(vae_weights))
        vae = _make_vae(vae_weights, vae_params, compat)
    model = DALLE(vae=vae, compat=compat, **options)
    state = _rename(w, model)
    if vae is not None:
        state |= {f"vae.{name}": value for name, value in vae_weights.items()}
    return load(model, state, checkpoint.source)


def _read(extra: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = extra.get(name)
    return dict(value) if isinstance(value, Mapping) else {}


def _shapes(w: Weights, given: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords that the weights give."""
    total, dim = w["to_logits.1.weight"].shape
    layers = [m for m in map(LAYER.match, w) if m]
    found: dict[str, Any] = {
        "dim": dim,
        "depth": 1 + max(int(m["i"] or m["j"] or 0) for m in layers),
        "reversible": any(m["fg"] for m in layers),
        "shift_tokens": any(re.search(r"fn\.fn\.fn\.fn.*to_qkv", m["rest"]) for m in layers),
        "sandwich_norm": any("norm_out" in m["rest"] for m in layers),
        "rotary_emb": "transformer.pos_emb" in w,
        "share_input_output_emb": "text_emb.linear.weight" in w,
    }
    hidden = next(v for k, v in w.items() if k.endswith("net.3.weight")).shape[1]
    found["ff_mult"] = hidden // dim if hidden % dim == 0 else hidden / dim
    inner = next(v for k, v in w.items() if k.endswith("to_qkv.weight")).shape[0] // 3
    if "heads" in given:
        found["dim_head"] = inner // given["heads"]
    else:
        found["heads"] = inner // given.get("dim_head", 64)
    found |= _lengths(w, given, total)
    return found


def _lengths(w: Weights, given: Mapping[str, Any], total: int) -> dict[str, int]:
    """text_seq_len and the sizes of both vocabularies."""
    if "text_pos_emb.weight" in w:
        words = w["text_pos_emb.weight"].shape[0] - 1
    elif "text_seq_len" in given:
        words = given["text_seq_len"]
    else:
        raise ValueError(
            "dalle-pytorch weights with rotary positions do not give the text length; pass "
            "config=dict(text_seq_len=...)."
        )
    if "image_emb.weight" in w:
        images = w["image_emb.weight"].shape[0]
    elif "num_text_tokens" in given:
        images = total - given["num_text_tokens"] - words
    else:
        raise ValueError(
            "dalle-pytorch weights with shared embeddings do not tell text from image tokens; "
            "pass config=dict(num_text_tokens=...)."
        )
    return {
        "text_seq_len": words,
        "num_image_tokens": images,
        "num_text_tokens": total - images - words,
    }


def _grid(
    w: Weights, options: Mapping[str, Any], vae_params: Mapping[str, Any]
) -> tuple[int, int]:
    """(height, width) of the image: the package's are squares."""
    if "image_pos_emb.weights.0" in w:
        found = w["image_pos_emb.weights.0"].shape[1], w["image_pos_emb.weights.1"].shape[2]
        count = math.prod(found)
    else:
        count = w["transformer.pos_emb"].shape[1] - options["text_seq_len"] - 1
        found = (math.isqrt(max(0, count)),) * 2
    expected, source = options.get("image_grid", found), "image_grid"
    if {"image_size", "num_layers"} <= vae_params.keys():
        side = vae_params["image_size"] // 2 ** vae_params["num_layers"]
        expected, source = (side, side), "the grid of the VAE"
    if isinstance(expected, int):
        expected = (expected, expected)
    if math.prod(found) != count or tuple(expected) != found:
        raise ValueError(
            f"the weights have {count} image positions beside text_seq_len="
            f"{options['text_seq_len']}, but {source} is {expected[0]} x {expected[1]}; check "
            "text_seq_len, and the VAE's image_size and num_layers."
        )
    return found


def _rename(w: Weights, model: DALLE) -> Weights:
    """Names of our model; layers that share weights repeat them in the package."""
    state: Weights = {}
    for name, value in w.items():
        match = LAYER.match(name)
        if match:
            _put(state, _layer_name(match, model), value, name)
        elif name in SHELL:
            state[SHELL[name]] = value.reshape(-1, value.shape[-1]) if "_pos" in name else value
        elif not name.startswith(("vae.", "transformer.pos_emb", "text_emb.", "image_emb.")):
            state[name] = value  # load() names what does not belong
    return state


def _layer_name(match: re.Match[str], model: DALLE) -> str:
    layer = int(match["i"] or match["j"])
    which = int(match["b"]) if match["b"] else "fg".index(match["fg"])
    rest = match["rest"]
    if rest == "scale" or rest.startswith(("fn.norm.", "fn.norm_out.")):
        return f"transformer.branches.{2 * layer + which}.{rest.removeprefix('fn.')}"
    tail = next((tail for tail in INNER if rest.endswith("fn." + tail)), None)
    if tail is None:
        return match.string
    modules = "feed_forwards" if which else "attentions"
    return f"transformer.{modules}.{model.transformer.plan[layer][which]}.{INNER[tail]}"


def _put(state: Weights, name: str, value: Tensor, source: str) -> None:
    value = value.flatten() if name.endswith(".scale") else value
    if name in state and not torch.equal(state[name], value):
        raise ValueError(
            f"{source} differs from the layer it is said to share its weights with; check "
            "shared_attn_ids and shared_ff_ids."
        )
    state[name] = value


# -- DiscreteVAE --------------------------------------------------------------------------------


def _make_vae(w: Weights, params: dict[str, Any], compat: str | None) -> Any:
    """A DiscreteVAE of the shapes of its weights."""
    cls = family("discrete_vae")
    blocks = len({n.split(".")[1] for n in w if re.match(r"encoder\.\d+\.net\.", n)})
    found = {
        "num_tokens": w["codebook.weight"].shape[0],
        "codebook_dim": w["codebook.weight"].shape[1],
        "num_layers": _halvings(w),
        "num_resnet_blocks": blocks,
        "hidden_dim": w["encoder.0.0.weight"].shape[0],
        "channels": w["encoder.0.0.weight"].shape[1],
    }
    known = {k: v for k, v in params.items() if k in cls.config_class.names() and k != "compat"}
    options = take(known, found, "dalle-pytorch")
    return cls(compat=compat, **options)


# -- CLIP ---------------------------------------------------------------------------------------


def _build_clip(checkpoint: Checkpoint, config: dict[str, Any], compat: str | None) -> nn.Module:
    w, cls = checkpoint.weights, family("clip")
    given = {**_read(checkpoint.extra, "hparams"), **config}
    given = {name: value for name, value in given.items() if name in cls.config_class.names()}
    channels = given.get("channels", 3)
    patch = math.isqrt(w["to_visual_embedding.weight"].shape[1] // channels)
    found = {
        "num_text_tokens": w["text_emb.weight"].shape[0],
        "dim_text": w["text_emb.weight"].shape[1],
        "text_seq_len": w["text_pos_emb.weight"].shape[0],
        "dim_image": w["to_visual_embedding.weight"].shape[0],
        "dim_latent": w["to_text_latent.weight"].shape[0],
        "visual_patch_size": patch,
        "visual_image_size": math.isqrt(len(w["visual_pos_emb.weight"])) * patch,
    }
    for tower, depth, heads in (
        ("text", "text_enc_depth", "text_heads"),
        ("visual", "visual_enc_depth", "visual_heads"),
    ):
        own = [re.match(rf"{tower}_transformer\.layers\.layers\.(\d+)\.", name) for name in w]
        found[depth] = 1 + max((int(m[1]) for m in own if m), default=-1)
        inner = next(
            v for k, v in w.items() if k.startswith(tower) and k.endswith("to_qkv.weight")
        )
        found[heads] = len(inner) // 3 // CLIP_DIM_HEAD
    options = take(given, found, "dalle-pytorch")
    options.setdefault("mask_padding", compat is None)
    return load(cls(**options), w, checkpoint.source)


def rename_towers(state: dict[str, Any]) -> None:
    """Names of dalle-pytorch to ours in the state dict of a CLIP, in place."""
    for name in list(state):
        match = TOWER_LAYER.match(name)
        if not match:
            continue
        layer, which, rest = int(match["i"]), int(match["b"]), name[match.end() :]
        value = state.pop(name)
        if rest == "scale":
            value = value.flatten()
        inner = next((INNER[tail] for tail in INNER if rest.endswith(f"fn.{tail}")), None)
        if inner is None:
            ours = f"branches.{2 * layer + which}.{rest.removeprefix('fn.')}"
        else:
            ours = f"{'feed_forwards' if which else 'attentions'}.{layer}.{inner}"
        state[match["tower"] + ours] = value


def _halvings(w: Weights) -> int:
    return len([name for name in w if re.match(r"encoder\.\d+\.0\.weight", name)])


DALLE_PYTORCH = Upstream(
    package="dalle-pytorch",
    compats=(PACKAGE,),
    recognises=lambda weights: is_dalle(weights) or is_vae(weights) or is_clip(weights),
    build=build,
)
