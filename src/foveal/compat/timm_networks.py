"""Whole HaloNets and BotNets of timm (halonet26t, halo2botnet50ts, ...): a foveal.HaloNet each.

Most of a network is read off its weights. What they do not show (the activation, whether the stem
pools, strides) is asked of the model where one is given, else of the network of `ARCHITECTURES`
that has the same shapes, or that `config=dict(architecture=...)` names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from torch import nn

from foveal.common.words import suggest
from foveal.compat.files import Checkpoint, Weights
from foveal.compat.timm_layers import from_bottleneck, from_halo, to_bottleneck, to_halo
from foveal.compat.timm_shapes import hidden_of, map_size, shown_by
from foveal.compat.upstream import load
from foveal.layers.halo import HaloAttention
from foveal.layers.map_attention import MapAttention
from foveal.models.halonet import HaloNet, HaloNetConfig
from foveal.models.halonet.hybrids import HYBRIDS, RESNET

_CONV, _MAP = ("conv",), ("map",)
_BOTNET: dict[str, Any] = {**RESNET, "heads": (4, 4, 4, 4)}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    **HYBRIDS,
    "halonet_h1": {
        **RESNET,
        "depths": (3, 3, 10, 3),
        "bottleneck_ratio": 1.0,
        "stem_dims": (),
        "stem_dim": 64,
        "stem_kernel": 7,
        "act": "relu",
    },
    "botnet26t": {
        **_BOTNET,
        "depths": (2, 2, 2, 2),
        "mixers": (_CONV, _CONV, ("conv", "map"), _MAP),
        "act": "relu",
    },
    "botnet50ts": {
        **_BOTNET,
        "depths": (3, 4, 6, 3),
        "mixers": (_CONV, ("conv", "conv", "conv", "map"), ("conv", "map"), ("conv", "map")),
    },
    "sebotnet33ts": {
        **HYBRIDS["sehalonet33ts"],
        "heads": (4, 4, 4, 4),
        "mixers": (_CONV, ("conv", "conv", "map"), ("conv", "conv", "map"), _MAP),
    },
    "eca_botnext26ts": {
        **HYBRIDS["eca_halonext26ts"],
        "heads": (4, 4, 4, 4),
        "mixers": (_CONV, _CONV, ("conv", "map"), _MAP),
    },
}
"""Name in timm -> keywords of HaloNet, but for those of compat; sizes of images follow _256."""

HIDDEN = ("act", "stem_pool", "stem_stride", "strides", "block_size", "scale_rel_pos")
"""Keywords that weights do not show."""

SHAPES = ("depths", "dims", "stem_dims", "stem_kernel", "channel_attention", "group_width")
"""Keywords by whose values a network is known, beside its mixers."""


def is_network(weights: Weights) -> bool:
    """Whether weights are those of a network of timm with attention in its blocks."""
    return any(re.match(r"stages\.\d+\.\d+\.self_attn\.", name) for name in weights)


def build_network(checkpoint: Checkpoint, config: dict[str, Any], compat: str | None) -> HaloNet:
    """The network of a checkpoint, with its weights.

    Args:
        config: keywords of HaloNet that win over what is read, and `architecture`.

    Raises:
        ValueError: layers that we have not, weights that fit no network, an unknown name.
    """
    w, config = checkpoint.weights, dict(config)
    shown = shown_by(w, checkpoint.source)
    named = config.pop("architecture", None)
    if named is None and checkpoint.module is not None:
        hidden = hidden_of(checkpoint.module)
    else:
        hidden = _hidden(checkpoint, shown, named, config)
    block = config.get("block_size", hidden["block_size"])
    window = shown.pop("window")
    if window is not None:
        shown["halo_size"] = (window - block) // 2
    keywords = {**hidden, **shown, "rel_pos": "sum", **config}
    size = map_size(w, HaloNetConfig.resolve(None, keywords))
    keywords |= {} if size is None else {"image_size": size}
    faults = {"padding": "attend", "true_offsets": False} if compat else {}
    model = HaloNet(**{**faults, **keywords})
    load(model, _to_ours(w, model), checkpoint.source)
    return model


def _hidden(
    checkpoint: Checkpoint, shown: dict[str, Any], named: str | None, config: dict[str, Any]
) -> dict[str, Any]:
    """What weights do not show, of a network that is named or has the same shapes."""
    said = str(checkpoint.extra.get("arch") or checkpoint.extra.get("architecture"))
    name = named or (said if _plain(said) in ARCHITECTURES else _like(shown))
    if name is not None and _plain(name) in ARCHITECTURES:
        known = HaloNetConfig(**ARCHITECTURES[_plain(name)])
        if shown["mixers"] != _mixers(known):
            raise ValueError(
                f"{checkpoint.source} is no {_plain(name)}: its blocks are {shown['mixers']}, "
                f"expected {_mixers(known)}."
            )
        return {key: getattr(known, key) for key in HIDDEN}
    if config.keys() >= set(HIDDEN):
        return {key: config[key] for key in HIDDEN}
    if named is not None:
        raise ValueError(f"unknown architecture {named!r}; {suggest(named, ARCHITECTURES)}")
    raise ValueError(
        f"cannot tell the activation and the strides of {checkpoint.source}; pass the model "
        f"itself, or config=dict(architecture=...), one of {', '.join(ARCHITECTURES)}."
    )


def _plain(name: str) -> str:
    """halo2botnet50ts_256.a1h_in1k -> halo2botnet50ts."""
    return re.sub(r"_\d+$", "", name.partition(".")[0])


def _like(shown: dict[str, Any]) -> str | None:
    """The network that has these shapes."""
    for name, keywords in ARCHITECTURES.items():
        known = HaloNetConfig(**keywords)
        same = all(shown[key] == getattr(known, key) for key in SHAPES)
        if same and shown["mixers"] == _mixers(known):
            return name
    return None


def _mixers(c: HaloNetConfig) -> tuple[tuple[str, ...], ...]:
    """What each block of each stage mixes pixels by."""
    return tuple(
        tuple(c.mixer(stage, block) for block in range(depth))
        for stage, depth in enumerate(c.depths)
    )


# -- names --------------------------------------------------------------------------------------

_PARTS = {
    "conv1_1x1.conv": "reduce.0",
    "conv1_1x1.bn": "reduce.1",
    "conv2_kxk.conv": "mix",
    "conv2_kxk.bn": "norm.0",
    "attn": "gate",
    "post_attn": "norm.0",
    "conv3_1x1.conv": "expand.0",
    "conv3_1x1.bn": "expand.1",
    "shortcut.conv": "shortcut.0",
    "shortcut.bn": "shortcut.1",
}
"""Parts of a block: theirs -> ours."""

_OUTER = {"final_conv.conv": "final.0", "final_conv.bn": "final.1", "head.fc": "head"}


def _attentions(model: HaloNet) -> Iterator[tuple[str, str, nn.Module]]:
    """Attention layers: prefix of the block, our name of the layer, the layer."""
    for name, layer in model.named_modules():
        if isinstance(layer, HaloAttention | MapAttention):
            yield name[: name.index(".mix")], name, layer


def _names(model: HaloNet, weights: Weights) -> dict[str, str]:
    """Theirs -> ours for every weight of `weights` outside of attention layers."""
    names = {}
    for theirs in weights:
        block, found = re.fullmatch(r"(stages\.\d+\.\d+\.)(.+)", theirs), theirs
        if stem := re.fullmatch(r"stem\.(?:conv(\d+)\.)?(conv|bn)\.(\w+)", theirs):
            number, kind, last = stem.groups()
            found = f"stem.{3 * (int(number or 1) - 1) + (kind == 'bn')}.{last}"
        elif block is not None:
            found = block[1] + _renamed(block[2], _PARTS)
        else:
            found = _renamed(theirs, _OUTER)
        if ".self_attn." not in theirs:
            names[theirs] = found
    return names


def _renamed(name: str, table: dict[str, str]) -> str:
    for theirs, ours in table.items():
        if name.startswith(f"{theirs}."):
            return ours + name.removeprefix(theirs)
    return name


def _to_ours(weights: Weights, model: HaloNet) -> Weights:
    """Weights of a network under our names."""
    result = {ours: weights[theirs] for theirs, ours in _names(model, weights).items()}
    for block, name, layer in _attentions(model):
        own = f"{block}.self_attn."
        part = {key.removeprefix(own): weights[key] for key in weights if key.startswith(own)}
        if isinstance(layer, MapAttention):
            part = from_bottleneck(part, layer.heads * layer.dim_qk)
        else:
            part = from_halo(part, layer.heads, layer.dim_qk)  # type: ignore[arg-type]
        result |= {f"{name}.{key}": value for key, value in part.items()}
    return result


def save_network(model: HaloNet) -> Weights:
    """A network under timm's names.

    Raises:
        ValueError: timm would compute something else with these weights.
    """
    result: Weights = {}
    for block, _, layer in _attentions(model):
        part = to_bottleneck(layer) if isinstance(layer, MapAttention) else to_halo(layer)
        result |= {f"{block}.self_attn.{key}": value for key, value in part.items()}
    # one convolution and a pooling are numbered there, one alone is not
    single = len(model.stem) == 4 and isinstance(model.stem[3], nn.Identity)
    attends = {block for block, _, _ in _attentions(model)}
    for ours, value in model.state_dict().items():
        inside = re.fullmatch(r"(stages\.\d+\.\d+)\.(.+)", ours)
        if stem := re.fullmatch(r"stem\.(\d+)\.(\w+)", ours):
            number, last = int(stem[1]), stem[2]
            conv = "" if single else f"conv{number // 3 + 1}."
            result[f"stem.{conv}{'bn' if number % 3 else 'conv'}.{last}"] = value
        elif inside is None:
            result[_renamed(ours, {b: a for a, b in _OUTER.items()})] = value
        elif not (inside[1] in attends and inside[2].startswith("mix.")):
            skipped = "conv2_kxk.bn" if inside[1] in attends else "post_attn"
            table = {b: a for a, b in _PARTS.items() if a != skipped}
            result[f"{inside[1]}.{_renamed(inside[2], table)}"] = value
    return result
