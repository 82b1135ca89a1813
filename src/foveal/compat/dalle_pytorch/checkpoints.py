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

from torch import nn

from foveal.compat.dalle_pytorch.names import clip_names, dalle_names, flat, shaped
from foveal.compat.files import Checkpoint, Weights
from foveal.compat.upstream import Upstream, load, must, take, to_ours, to_theirs
from foveal.models.clip import CLIP, CLIPConfig
from foveal.models.config import check_keywords
from foveal.models.dalle.config import PACKAGE, DALLEConfig
from foveal.models.dalle.model import DALLE
from foveal.models.vae import DiscreteVAE, DiscreteVAEConfig

LAYER = re.compile(
    r"transformer\.layers\.(?:layers\.(?P<i>\d+)\.(?P<b>[01])|blocks\.(?P<j>\d+)\.(?P<fg>[fg])\.net)"
    r"\.(?P<rest>.+)"
)
NAME = "dalle-pytorch"
PACKAGE_TYPES = ("full", "axial_row", "axial_col", "conv_like")
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
    options = take(given, _shapes(w, given), NAME)
    options.setdefault("attn_types", ("full",))
    grid = options["image_grid"] = _grid(w, options, vae_params)
    vae = None
    if is_vae(vae_weights):
        vae_params.setdefault("image_size", grid[0] * 2 ** _halvings(vae_weights))
        vae = _make_vae(vae_weights, vae_params, compat)
    model = DALLE(vae=vae, compat=compat, **options)
    known = {n: v for n, v in w.items() if vae is not None or not n.startswith("vae.")}
    return load(model, to_ours(dalle_names(model), flat(known)), checkpoint.source)


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


def _save(model: DALLE | DiscreteVAE | CLIP) -> Weights:
    """The weights of a model as the package names them."""
    c = model.settings
    if isinstance(c, CLIPConfig):
        must(NAME, mask_padding=(c.mask_padding, False))
        _must_be_square(visual_image_size=c.pixels)
        assert isinstance(model, CLIP)
        return shaped(to_theirs(clip_names(model), model.state_dict()), model)
    if isinstance(c, DiscreteVAEConfig):
        must(NAME, compat=(c.compat, PACKAGE))
        _must_be_square(image_size=c.pixels)
        return dict(model.state_dict())
    assert isinstance(model, DALLE)
    _check_dalle(model)
    return shaped(to_theirs(dalle_names(model), model.state_dict()), model)


def _check_dalle(model: DALLE) -> None:
    """Raise ValueError unless the package computes what the model computes."""
    c = model.settings
    if c.rotary_emb or c.stable:
        must(NAME, compat=(c.compat, PACKAGE))
    unknown = [kind for kind in c.types if kind not in PACKAGE_TYPES]
    if unknown:
        raise ValueError(
            f"{NAME} has no attention {unknown[0]!r} whose weights mean the same there; it shares "
            f"{', '.join(PACKAGE_TYPES)} with us."
        )
    must(NAME, activation=(c.activation, "geglu"))
    if "conv_like" in c.types:
        must(NAME, kernel_size=(c.kernel_size, 5), dilation=(c.dilation, 1))
    _must_be_square(image_grid=c.grid)
    if isinstance(model.vae, DiscreteVAE):
        _save(model.vae)  # which says what is wrong with it
    else:
        raise ValueError(
            f"a DALLE of {NAME} holds its DiscreteVAE, got vae={type(model.vae).__name__}; give "
            "vae=foveal.DiscreteVAE(...)."
        )


def _must_be_square(**sizes: tuple[int, int]) -> None:
    for name, (height, width) in sizes.items():
        if height != width:
            raise ValueError(f"{NAME} knows squares only, got {name}=({height}, {width}).")


# -- DiscreteVAE --------------------------------------------------------------------------------


def _make_vae(w: Weights, params: dict[str, Any], compat: str | None) -> DiscreteVAE:
    """A DiscreteVAE of the shapes of its weights."""
    blocks = len({n.split(".")[1] for n in w if re.match(r"encoder\.\d+\.net\.", n)})
    found = {
        "num_tokens": w["codebook.weight"].shape[0],
        "codebook_dim": w["codebook.weight"].shape[1],
        "num_layers": _halvings(w),
        "num_resnet_blocks": blocks,
        "hidden_dim": w["encoder.0.0.weight"].shape[0],
        "channels": w["encoder.0.0.weight"].shape[1],
    }
    known = {k: v for k, v in params.items() if k in DiscreteVAEConfig.names() and k != "compat"}
    options = take(known, found, NAME)
    return DiscreteVAE(compat=compat, **options)


# -- CLIP ---------------------------------------------------------------------------------------


def _build_clip(checkpoint: Checkpoint, config: dict[str, Any], compat: str | None) -> nn.Module:
    w = checkpoint.weights
    given = {**_read(checkpoint.extra, "hparams"), **config}
    given = {name: value for name, value in given.items() if name in CLIPConfig.names()}
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
    options = take(given, found, NAME)
    options.setdefault("mask_padding", compat is None)
    model = CLIP(**options)
    return load(model, to_ours(clip_names(model), flat(w)), checkpoint.source)


def _halvings(w: Weights) -> int:
    return len([name for name in w if re.match(r"encoder\.\d+\.0\.weight", name)])


DALLE_PYTORCH = Upstream(
    package=NAME,
    compats=(PACKAGE,),
    recognises=lambda weights: is_dalle(weights) or is_vae(weights) or is_clip(weights),
    build=build,
    writes=(DALLE, DiscreteVAE, CLIP),
    save=_save,
)
