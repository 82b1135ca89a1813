"""Operators of our own: opaque to torch.compile and export, known to torch.func."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, fake_tensor_tls
from torch.autograd import forward_ad

from foveal.common.memo import untraced


def define(name: str, function: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """Register ``foveal::<name>``, which runs `function` on every device, and return it.

    torch.library.custom_op does the same, but the first call of what it makes imports the
    compiler: a second, and 60 MB. Under torch.func.vmap it runs once for each sample; what has no
    derivative of that kind must be computed another way where `is_transformed` says so.

    Args:
        function: the computation, with annotated arguments; must not change or return them.
        fake: the same call on shapes alone.
    """
    schema = torch.library.infer_schema(function, mutates_args=())
    torch.library.define(f"foveal::{name}", str(schema), tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.impl(f"foveal::{name}", "CompositeExplicitAutograd", _opaque(function))
    torch.library.register_fake(f"foveal::{name}", fake)
    op = getattr(torch.ops.foveal, name).default

    def by_sample(info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
        found = [op(*_sample(args, in_dims, at)) for at in range(info.batch_size)]
        if isinstance(found[0], Tensor):
            return torch.stack(found), 0
        kind = type(found[0])
        return kind(torch.stack(part) for part in zip(*found, strict=True)), kind(
            0 for _ in found[0]
        )

    torch.library.register_vmap(f"foveal::{name}", by_sample)
    return op


def _opaque(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, no part of a trace: torch.jit.trace records its call."""

    def run(*args: Any) -> Any:
        if _trace() is None:
            return function(*args)
        with untraced():
            return function(*args)

    return run


def _sample(args: Any, dims: Any, at: int) -> Any:
    """Arguments of one sample: those with a dimension of samples, narrowed."""
    if isinstance(args, Tensor):
        return args if dims is None else args.select(dims, at)
    if isinstance(args, tuple | list) and dims is not None:
        return type(args)(_sample(arg, dim, at) for arg, dim in zip(args, dims, strict=True))
    return args


def one_at_a_time(gradients: Callable[..., tuple[Any, ...]]) -> Callable[..., tuple[Any, ...]]:
    """Decorator of a backward function: gradients of many outputs (is_grads_batched=True).

    They come as tensors of an older vmap than that of torch.func, which knows no rules of ours.
    """
    is_batched = torch._C._functorch.is_legacy_batchedtensor

    def wrapped(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        if torch.compiler.is_compiling() or not any(is_batched(x) for x in grads):
            return gradients(ctx, *grads)
        level = torch._C._vmapmode_increment_nesting() - 1
        torch._C._vmapmode_decrement_nesting()
        dims = [0 if is_batched(x) else None for x in grads]
        many = [torch._remove_batch_dim(x, level, 1, 0) if is_batched(x) else x for x in grads]
        count = next(len(x) for x, dim in zip(many, dims, strict=True) if dim == 0)
        found = [gradients(ctx, *_sample(many, dims, at)) for at in range(count)]
        return tuple([_stack(part, level) for part in zip(*found, strict=True)])

    return wrapped


def _stack(parts: tuple[Any, ...], level: int) -> Any:
    if not isinstance(parts[0], Tensor):
        return parts[0]
    return torch._add_batch_dim(torch.stack(parts), 0, level)


def is_transformed(*tensors: Tensor | None) -> bool:
    """Whether derivatives are taken that an opaque operator does not have.

    These are the transforms of torch.func (but for vmap, which every operator knows) and forward
    mode: then the same is computed in plain operations, of which torch knows every derivative.
    """
    if torch.compiler.is_compiling():
        return False
    functorch = torch._C._functorch
    if functorch.peek_interpreter_stack() is not None:
        vmap = functorch.TransformType.Vmap
        if any(one.key() != vmap for one in functorch.get_interpreter_stack() or ()):
            return True
    return _is_dual(*tensors)


def is_differentiated(*tensors: Tensor | None) -> bool:
    """Whether a backward pass is itself being differentiated (create_graph=True, forward mode)."""
    if torch.compiler.is_compiling():
        return False
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors):
        return True
    return is_transformed(*tensors)


def is_beyond_functions(*tensors: Tensor | None) -> bool:
    """Whether an autograd.Function without rules for torch.func and forward mode would fail."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._functorch.peek_interpreter_stack() is not None or _is_dual(*tensors)


_any_autocast = torch._C._is_any_autocast_enabled
dispatch_modes = torch._C._len_torch_dispatch_stack
function_modes = torch._C._len_torch_function_stack
_transform = torch._C._functorch.peek_interpreter_stack
_trace = torch._C._get_tracing_state
profiled = torch.autograd._profiler_enabled


def is_ordinary() -> bool:
    """Whether a call is computed here and now, as it stands.

    Not so while the compiler, a trace, a mode, a transform of torch.func, forward mode, autocast
    or a profiler is at work.
    """
    return not torch.compiler.is_compiling() and is_unwatched() and is_untraced()


def is_unwatched() -> bool:
    """Whether no mode, profiler, transform of torch.func or forward mode is at work."""
    return not (
        dispatch_modes()
        or function_modes()
        or forward_ad._current_level >= 0
        or profiled()
        or _transform() is not None
    )


def is_untraced() -> bool:
    """Whether no autocast and no torch.jit.trace is at work."""
    return not _any_autocast() and _trace() is None


def is_fake(x: Any) -> bool:
    """Whether it has a shape and no values."""
    return isinstance(x, FakeTensor)


def is_stray(x: Any) -> bool:
    """Whether it is a fake tensor outside of the mode that made it."""
    return isinstance(x, FakeTensor) and not dispatch_modes()


@contextlib.contextmanager
def in_mode_of(x: Any) -> Iterator[None]:
    """The mode of a fake tensor, real tensors admitted: patterns and mods hold some."""
    before = fake_tensor_tls.allow_non_fake_inputs_override
    fake_tensor_tls.allow_non_fake_inputs_override = True
    try:
        with x.fake_mode:
            yield
    finally:
        fake_tensor_tls.allow_non_fake_inputs_override = before


_keys = torch._C._dispatch_keys
_KINDS = (Tensor, torch.nn.Parameter)


def is_plain(*tensors: Tensor | None) -> bool:
    """Whether these are nothing but numbers in memory of the CPU, and the call is ordinary.

    Then an operator is only what it computes, and need not pass through torch's dispatcher.
    """
    if not is_ordinary():
        return False
    plain = _plain_keys()
    for x in tensors:
        if x is not None and not (type(x) in _KINDS and _keys(x).raw_repr() in plain):
            return False
    return True


@functools.lru_cache(maxsize=1)
def _plain_keys() -> frozenset[int]:
    """Of tensors that are no subclass, fake, sparse, negated, batched or wrapped."""
    with torch.inference_mode():
        within = torch.empty(0, device="cpu")
    with torch.inference_mode(False):
        outside = torch.empty(0, device="cpu")
    return frozenset(_keys(x).raw_repr() for x in (within, outside))


def _is_dual(*tensors: Tensor | None) -> bool:
    if forward_ad._current_level < 0:
        return False
    return any(x is not None and forward_ad.unpack_dual(x).tangent is not None for x in tensors)
