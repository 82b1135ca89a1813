"""load_upstream() and save_upstream(): checkpoints of public packages, read and written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from foveal.common.files import write_file
from foveal.common.placing import as_device, as_dtype
from foveal.common.words import suggest
from foveal.compat.dalle_pytorch.checkpoints import DALLE_PYTORCH
from foveal.compat.files import Checkpoint, Weights, read_checkpoint
from foveal.compat.h_transformer_1d.checkpoints import H_TRANSFORMER_1D
from foveal.compat.halonet_pytorch.checkpoints import HALONET_PYTORCH
from foveal.compat.hourglass_transformer_pytorch.checkpoints import HOURGLASS_PYTORCH
from foveal.compat.sepvit import AUTHORS
from foveal.compat.timm import TIMM
from foveal.compat.upstream import Upstream
from foveal.compat.vit_pytorch.checkpoints import VIT_PYTORCH

PACKAGE_DEFAULT = "package"
"""Default of `compat`: the mathematics of the package that wrote the checkpoint."""

_packages: dict[str, Upstream] = {}


def register_upstream(upstream: Upstream) -> None:
    """Make a package known to `load_upstream`."""
    _packages[upstream.package] = upstream


for _known in (
    DALLE_PYTORCH,
    HALONET_PYTORCH,
    TIMM,
    HOURGLASS_PYTORCH,
    H_TRANSFORMER_1D,
    VIT_PYTORCH,
    AUTHORS,
):
    register_upstream(_known)


def list_upstreams() -> dict[str, tuple[str, ...]]:
    """Package -> the versions whose mathematics `compat` can reproduce."""
    return {name: upstream.compats for name, upstream in sorted(_packages.items())}


def load_upstream(
    checkpoint: str | Path | Mapping[str, Any] | nn.Module,
    package: str | None = None,
    config: Mapping[str, Any] | None = None,
    compat: str | None = PACKAGE_DEFAULT,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
) -> nn.Module:
    """The model or layer of a public package's checkpoint, in evaluation mode.

    Args:
        checkpoint: a file written by torch.save or safetensors, a state dict, or a model of the
            package. Files are read without executing anything in them.
        package: who wrote it, one of `list_upstreams()`; None tells from the names of the
            parameters.
        config: keywords of the package's constructor; only those that the shapes of the weights
            do not give are needed.
        compat: whose mathematics. Left out, those of the package, faults included; None, the
            corrected ones, with the same weights; or "<package>-<version>".
        device, dtype: of its weights, as in `foveal.load_model`; as they come unless given.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an unknown package or version, a damaged or dangerous file, weights that do
            not fit; a device that is not there, or a dtype that no model computes in.

    Example:
        >>> import foveal.interop as interop
        >>> from foveal.layers import HaloAttention
        >>> weights = HaloAttention(dim=32, block_size=8, halo_size=4).state_dict()
        >>> layer = interop.load_upstream(
        ...     weights, package="halonet-pytorch", config=dict(block_size=8, halo_size=4)
        ... )
        >>> layer.heads
        8
    """
    place = None if device is None else as_device("device", device)
    kind = None if dtype is None else as_dtype("dtype", dtype)
    read = read_checkpoint(checkpoint)
    upstream = _find(read) if package is None else _named(package)
    if compat == PACKAGE_DEFAULT:
        compat = upstream.compats[0]
    if compat is not None and compat not in upstream.compats:
        raise ValueError(
            f"compat must be None or one of {', '.join(upstream.compats)} for "
            f"{upstream.package}, got {compat=}."
        )
    try:
        model = upstream.build(read, dict(config or {}), compat)
    except KeyError as error:
        raise ValueError(
            f"{read.source} does not look like {upstream.package}: it has no {error}."
        ) from error
    return model if place is None and kind is None else model.to(place, kind)


def save_upstream(
    model: nn.Module, path: str | Path | None = None, package: str | None = None
) -> Weights:
    """The weights of a model or layer as a public package names them, for it to load strictly.

    The way back of `load_upstream`: what trained here goes on where it came from.

    Args:
        path: where to write them too, whole or not at all: safetensors for that ending, else a
            file of torch.save.
        package: for which package, one of `list_upstreams()`; None takes the first that has such
            models.

    Returns:
        name -> tensor. The tensors are those of the model, not copies.

    Raises:
        ValueError: no package has such a model, or the package would compute something else
            with these weights; the message says why.

    Example:
        >>> import foveal
        >>> layer = foveal.HaloAttention(dim=32, block_size=8, halo_size=4)
        >>> sorted(foveal.compat.save_upstream(layer))[0]
        'rel_pos_emb.rel_height'
    """
    known = [one for one in _packages.values() if isinstance(model, one.writes)]
    if package is not None:
        known = [one for one in known if one is _named(package)]
    if not known:
        classes = {cls.__name__ for one in _packages.values() for cls in one.writes}
        wanted = "no public package" if package is None else package
        raise ValueError(
            f"{wanted} has a model like {type(model).__name__}, as far as we know; such are "
            f"{', '.join(sorted(classes))}."
        )
    weights = _first_that_fits(known, model)
    if path is not None:
        _write(weights, Path(path))
    return weights


def _first_that_fits(packages: list[Upstream], model: nn.Module) -> Weights:
    faults = []
    for one in packages:
        assert one.save is not None
        try:
            return one.save(model)
        except ValueError as error:
            faults.append(error)
    raise faults[0]


def _write(weights: Weights, path: Path) -> None:
    if path.suffix == ".safetensors":
        whole = {name: value.contiguous().clone() for name, value in weights.items()}
        write_file(path, lambda part: save_file(whole, part))
    else:
        write_file(path, lambda part: torch.save(weights, part))


def _named(package: str) -> Upstream:
    if package not in _packages:
        raise ValueError(f"unknown package {package!r}; {suggest(package, _packages)}")
    return _packages[package]


def _find(checkpoint: Checkpoint) -> Upstream:
    for upstream in _packages.values():
        if upstream.recognises(checkpoint.weights):
            return upstream
    names = ", ".join(list(checkpoint.weights)[:3])
    raise ValueError(
        f"cannot tell which package wrote {checkpoint.source} ({names}, ...); pass package=, one "
        f"of {', '.join(sorted(_packages))}."
    )
