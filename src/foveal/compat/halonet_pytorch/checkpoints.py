"""HaloAttention layers of halonet-pytorch.

| package | what it does | corrected (compat=None) |
|---|---|---|
| halonet-pytorch 0.0.5 | sizes must be multiples of the block | any size |
| halonet-pytorch 0.0.4 | masks the map and attends to what lies beyond it | as 0.0.5 |
"""

from __future__ import annotations

from typing import Any

from torch import nn

from foveal.compat.files import Checkpoint, Weights
from foveal.compat.upstream import Upstream, load, must, take
from foveal.layers.halo import HaloAttention, Padding

NAME = "halonet-pytorch"
INVERTED = "halonet-pytorch-0.0.4"


def window_sizes(tables: tuple[int, int], config: dict[str, Any], package: str) -> dict[str, Any]:
    """block_size and halo_size: the tables give their sum, the config at least one of them."""
    windows = tuple((rows + 1) // 2 for rows in tables)
    block, halo = config.get("block_size"), config.get("halo_size")
    if block is None and halo is None:
        raise ValueError(
            f"{package} weights give only block_size + 2 * halo_size = {windows[0]}; pass "
            "config=dict(block_size=..., halo_size=...)."
        )
    if block is None:
        block = windows[0] - 2 * (halo or 0)
    if halo is None:
        halo = (windows[0] - block) // 2
    if any(block + 2 * halo != window for window in windows):
        raise ValueError(
            f"block_size={block} and halo_size={halo} do not fit the weights, which have "
            f"block_size + 2 * halo_size = {windows[0]}."
        )
    return {"block_size": block, "halo_size": halo}


def _build(checkpoint: Checkpoint, config: dict[str, Any], compat: str | None) -> nn.Module:
    w = checkpoint.weights
    inner, dim = w["to_q.weight"].shape
    rows, dim_head = w["rel_pos_emb.rel_height"].shape
    shape = {"dim": dim, "dim_head": dim_head, "heads": inner // dim_head}
    options = take(config, shape, NAME)
    columns = w["rel_pos_emb.rel_width"].shape[0]
    options |= window_sizes((rows, columns), config, NAME)
    padding: Padding = "inverted" if compat == INVERTED else "mask"
    return load(HaloAttention(**options, padding=padding), w, checkpoint.source)


def _save(layer: HaloAttention) -> Weights:
    block, halo = layer.block_size[0], layer.halo_size
    must(
        NAME,
        block_size=(layer.block_size, (block, block)),
        halo_size=(halo, (halo[0], halo[0])),
        stride=(layer.stride, 1),
        out_proj=(isinstance(layer.to_out, nn.Linear), True),
        dim_out=(layer.dim_out, layer.dim),
        qkv_bias=(layer.to_q.bias is not None, False),
        rel_pos=(getattr(layer.rel_pos_emb, "mode", None), "sum"),
        scale_rel_pos=(layer.scale_rel_pos, True),
        value_ratio=(layer.dim_v / layer.dim_qk, 1.0),
    )
    if layer.padding == "attend" or halo[0] == 0:
        raise ValueError(
            f"{NAME} needs padding='mask' (0.0.5) or 'inverted' (0.0.4) and a halo, got a layer "
            f"with padding={layer.padding!r}, halo_size={halo}."
        )
    return dict(layer.state_dict())


HALONET_PYTORCH = Upstream(
    package=NAME,
    compats=("halonet-pytorch-0.0.5", INVERTED),
    recognises=lambda weights: {"to_kv.weight", "rel_pos_emb.rel_height"} <= weights.keys(),
    build=_build,
    writes=(HaloAttention,),
    save=_save,
)
