"""Weights of which each process holds a part, by torch's fully_shard (FSDP2)."""

from __future__ import annotations

import contextlib
import copy
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from foveal.layers.reversible import ReversibleSequence
from foveal.training import checkpoints, parts
from foveal.training.folders import PARTS, SETTINGS, fitting, is_in_parts
from foveal.training.moments import (
    Moments,
    from_numbers,
    names_of,
    read_groups,
    read_moments,
    states_from,
)
from foveal.training.optimizers import MakeOptimizers
from foveal.training.processes import together

if TYPE_CHECKING:
    from accelerate import Accelerator

METHODS = (
    *("losses", "prefill", "extend", "step", "get_codebook_indices", "decode"),
    *("encode_text", "encode_image", "forward_features", "forward_intermediates"),
)
"""What else than `forward` of a model computes with its weights."""


def shard(model: nn.Module, mesh: DeviceMesh) -> list[FSDPModule]:
    """Leave each process of a mesh a part of every parameter, block by block, in place.

    A block is an outermost member of a ModuleList or Sequential that has a `forward` and modules
    of its own (a Sequential only if it has no blocks itself); what is in none is gathered for a
    whole forward pass. Reversible layers, which run the halves of their blocks, have none.
    Numbers, and what blocks share with each other, stay whole everywhere: `whole_parameters`.

    Args:
        mesh: of one dimension; its first process gives all the weights.

    Returns:
        The modules that are gathered each by itself, the model last.
    """
    inner = blocks(model)
    kept = set(whole_parameters(model, inner))
    device = torch.device(mesh.device_type)
    if device.type != "cpu":
        device = torch.device(device.type, torch.accelerator.current_device_index())
    done: list[FSDPModule] = []
    for module in (*inner, model):
        _same_everywhere(module, mesh, device)
        is_root = module is model
        fully_shard(module, mesh=mesh, reshard_after_forward=not is_root, ignored_params=kept)
        done.append(cast(FSDPModule, module))
    for name in METHODS:
        if callable(getattr(model, name, None)):
            register_fsdp_forward_method(model, name)
    return done


def blocks(model: nn.Module) -> list[nn.Module]:
    """The parts of a model that can be gathered each by itself; see `shard`."""
    found: dict[int, nn.Module] = {}
    for child in () if _is_reversible(model) else model.children():
        is_member = isinstance(model, nn.ModuleList | nn.Sequential)
        whole = is_member and _is_block(child)
        inner = [] if whole and not isinstance(child, nn.Sequential) else blocks(child)
        for module in inner or ([child] if whole else []):
            found[id(module)] = module
    return list(found.values())


def _is_block(module: nn.Module) -> bool:
    runs = type(module).forward is not nn.Module.forward
    return runs and any(module.children()) and any(p.requires_grad for p in module.parameters())


def _is_reversible(module: nn.Module) -> bool:
    """Whether it runs the halves of its blocks, and never a block."""
    return isinstance(module, ReversibleSequence) or getattr(module, "reversible", None) is True


def whole_parameters(model: nn.Module, inner: list[nn.Module]) -> list[nn.Parameter]:
    """Parameters that cannot be cut: numbers, and those that belong to several blocks."""
    owners: dict[int, set[int]] = {}
    inside: set[int] = set()
    for number, block in enumerate(inner):
        inside.update(map(id, block.modules()))
        for p in block.parameters():
            owners.setdefault(id(p), set()).add(number)
    for module in model.modules():
        if id(module) not in inside:
            for p in module.parameters(recurse=False):
                owners.setdefault(id(p), set()).add(-1)
    return [p for p in model.parameters() if p.ndim == 0 or len(owners[id(p)]) > 1]


@torch.no_grad()
def _same_everywhere(module: nn.Module, mesh: DeviceMesh, device: torch.device) -> None:
    """Move what is not shared out yet to the device, with the values of the first process."""
    for tensor in (*module.parameters(), *module.buffers()):
        if not isinstance(tensor, DTensor):
            tensor.data = tensor.data.to(device).contiguous()
            dist.broadcast(tensor.detach(), group=mesh.get_group(), group_src=0)


@contextlib.contextmanager
def gathered(modules: Sequence[FSDPModule]) -> Iterator[None]:
    """All of their weights in every process, so that nobody waits for another one meanwhile.

    Args:
        modules: what `shard` has returned.
    """
    for module in modules:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in modules:
            module.reshard()
            module.set_reshard_after_forward(module is not modules[-1], recurse=False)


class Sharded:
    """Weights and optimizers of which each process holds a part; see weights.Weights.

    Args:
        model: sharded in place.
        make: the optimizers of a model.
        accelerator: its processes share the weights, those that share a sequence too.
        compile: must be False.

    Raises:
        ValueError: torch should compile the model.
    """

    def __init__(
        self, model: nn.Module, make: MakeOptimizers, accelerator: Accelerator, compile: bool
    ) -> None:
        if compile:
            raise ValueError(
                'training.compile does not work together with parallel.shard = "fsdp" yet; leave '
                "one of them out."
            )
        self._accelerator, self.model = accelerator, model
        if type(model).__module__.startswith("foveal."):  # changes no output in place
            warnings.filterwarnings("ignore", message=".*returned a view tensor. An in-place op")
        # all processes, whatever they share besides; Accelerate's name
        self._mesh = init_device_mesh(
            accelerator.device.type, (accelerator.num_processes,), mesh_dim_names=("dp_shard_cp",)
        )
        self._form = copied(model, torch.device("meta"))
        self._names = [_in_order(model, one) for one in make(model)]
        self._modules = shard(model, self._mesh)
        self.optimizers = make(model)

    @contextlib.contextmanager
    def synchronised(self, last: bool) -> Iterator[None]:
        cast(FSDPModule, self.model).set_requires_gradient_sync(last)
        try:
            yield
        except (RuntimeError, ValueError, TypeError) as error:
            if "DTensor" not in str(error):
                raise
            raise ValueError(
                f'parallel.shard = "fsdp" gathers the weights of {type(self.model).__name__} when '
                "a member of a ModuleList is called, but something uses weights of one without "
                "calling it; call the member, keep them in the model itself, or use "
                'parallel.shard = "none".'
            ) from error

    @torch.no_grad()
    def settle(self, clip: float) -> None:
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self._average([p for p in trained if not isinstance(p, DTensor)])
        if not clip:
            return
        cut = [p.grad.to_local() for p in trained if isinstance(p.grad, DTensor)]
        whole = [p.grad for p in trained if p.grad is not None and isinstance(p.grad, Tensor)]
        whole = [grad for grad in whole if not isinstance(grad, DTensor)]
        total = self._squares(cut)
        dist.all_reduce(total, group=self._mesh.get_group())
        norm = (total + self._squares(whole)).sqrt()
        # as torch.nn.utils.clip_grad_norm_ has it
        factor = (clip / (norm + 1e-6)).clamp(max=1.0)
        for grads in (cut, whole):
            if grads:
                torch._foreach_mul_(grads, factor)

    def _squares(self, grads: list[Tensor]) -> Tensor:
        """The squares of all these numbers in one sum."""
        if not grads:
            return torch.zeros((), device=self._accelerator.device)
        return torch.stack(torch._foreach_norm(grads)).square().sum()

    def _average(self, parameters: list[nn.Parameter]) -> None:
        """The gradients of what each process has whole, averaged; as for the others by FSDP."""
        if not parameters:
            return
        used = [p.grad is not None for p in parameters]
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([grad.flatten().float() for grad in grads])
        flat = torch.cat((flat, flat.new_tensor(used)))
        dist.all_reduce(flat, group=self._mesh.get_group())
        means = flat[: -len(used)] / self._mesh.size()
        sizes = [p.numel() for p in parameters]
        for p, mine, mean, others in zip(
            parameters, used, means.split(sizes), flat[-len(used) :], strict=True
        ):
            if mine or others > 0:  # used by none: no optimizer should move it
                p.grad = mean.view_as(p).to(p.dtype)

    def whole(self) -> contextlib.AbstractContextManager[None]:
        return gathered(self._modules)

    def save(
        self,
        root: Path,
        step: int,
        state: dict[str, Any],
        settings: dict[str, Any],
        *,
        keep: int,
        check: Callable[[], None],
    ) -> Path:
        tensors = {names[0]: value.detach() for names, value in parts.weights_of(self.model)}
        for name, kept in read_moments(self.model, self.optimizers).items():
            tensors |= {f"{parts.OPTIMIZER}{name}/{kind}": kept[kind] for kind in kept}
        groups = read_groups(self.model, self.optimizers)
        texts = {
            PARTS: parts.state_text({**state, "optimizers": groups}),
            SETTINGS: json.dumps(settings, indent=2),
        }
        return parts.save_parts(
            self._accelerator, root, step, tensors, texts, keep=keep, check=check
        )

    def load(self, folder: Path) -> dict[str, Any]:
        # each reads its part by itself; none trains on where another could not
        return together(self._accelerator, lambda: self._load(folder))

    def _load(self, folder: Path) -> dict[str, Any]:
        parts.read_weights(self.model, folder)
        parameters = dict(self.model.named_parameters())
        if is_in_parts(folder):
            state = parts.load_parts_state(folder)
            moments = parts.read_moments_of(folder, parameters)
        else:
            state = checkpoints.load_state(folder)
        with fitting(folder):
            groups = state["optimizers"]
            if not is_in_parts(folder):
                moments, groups = from_numbers(groups, self._names)
                moments = _cut(moments, parameters)
            states = states_from(self.model, self.optimizers, moments, groups)
            for optimizer, own in zip(self.optimizers, states, strict=True):
                optimizer.load_state_dict(own)
        return state

    def end(self, checkpoint: Path) -> nn.Module | None:
        if not self._accelerator.is_main_process:
            return None
        model = copied(self._form, self._accelerator.device)
        checkpoints.load_weights(model, checkpoint)
        return model


def copied(model: nn.Module, device: torch.device) -> nn.Module:
    """A model like it whose parameters, on a device, are yet to be filled; buffers are copied.

    It shares its sequences with nobody, see `foveal.parallel.shard_sequence`.
    """
    memo: dict[int, Any] = {id(getattr(one, "sharing", None)): None for one in model.modules()}
    for p in model.parameters():
        memo[id(p)] = nn.Parameter(torch.empty_like(p, device=device), p.requires_grad)
    for buffer in model.buffers():
        where = buffer.device if device.type == "meta" else device
        memo[id(buffer)] = buffer.detach().to(where, copy=True)
    return copy.deepcopy(model, memo)


def _in_order(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """The names of an optimizer's parameters, in the order in which it numbers them."""
    names = names_of(model)
    return [names[id(p)] for group in optimizer.param_groups for p in group["params"]]


def _cut(moments: Moments, parameters: dict[str, nn.Parameter]) -> Moments:
    """Of whole moments the parts that belong to the parts of parameters."""

    def cut(value: Tensor, like: Tensor) -> Tensor:
        if not isinstance(like, DTensor) or value.shape != like.shape:
            return value
        value = value.to(like.device)
        return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)

    return {
        name: {kind: cut(value, parameters[name]) for kind, value in kept.items()}
        for name, kept in moments.items()
    }
