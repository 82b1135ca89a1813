"""The mask that a model of transformers hands to its layers: a rule, written out on demand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only
from transformers import masking_utils
from transformers.utils.import_utils import is_tracing

from foveal.integrations.transformers.rules import Rule, Selection, Sizes, rule_of, selection_of

_is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor

_READ = ("shape", "ndim", "dtype", "device", "layout", "requires_grad", "is_cuda", "is_cpu")
_ASKS = {getattr(Tensor, name).__get__ for name in (*_READ, "is_meta", "grad_fn", "is_leaf")} | {
    getattr(Tensor, name)
    for name in ("size", "dim", "numel", "is_floating_point", "__len__", "get_device", "nelement")
}
"""What is answered without the numbers."""
_SAME = {getattr(Tensor, name) for name in ("detach", "contiguous", "to")}
_SET_GRADIENT = Tensor.requires_grad.__set__  # type: ignore[attr-defined]


class PatternMask(Tensor):
    """An additive mask (batch, 1, num_queries, num_keys) of which only the rule is there.

    It goes wherever a model hands its mask on. An operation on it sees the mask written out, as
    the eager attention of transformers has it: 0 where a key is read, else the lowest number.
    Once that is written to, in whatever way, the rule is not that of the mask any more.
    """

    _rule: Rule | Selection | None
    _make: Callable[[], Tensor]
    _allowed: Tensor | None
    _added: Tensor | None
    _first_version: int

    @staticmethod
    def of(
        shape: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device,
        rule: Rule | Selection | None,
        allowed: Callable[[], Tensor],
    ) -> PatternMask:
        """A mask of that shape; `allowed` gives (batch, 1, num_queries, num_keys) bool."""
        # whoever reads past what is written out here meets nan, not a mask
        empty = torch.full((), torch.nan, dtype=dtype, device=device).expand(shape)
        found = empty.as_subclass(PatternMask)
        found._rule, found._make, found._allowed, found._added = rule, allowed, None, None
        return found

    @property
    def rule(self) -> Rule | Selection | None:
        """Who reads whom; None where only the mask itself says it."""
        return None if self._is_changed() else self._rule

    def written_out(self) -> Tensor:
        """The mask itself, made once."""
        if self._added is None:
            with torch.inference_mode(False):  # whose tensors do not count who writes to them
                added = _added(self.allowed(), self.dtype)
                self._added = added.expand(self.shape).contiguous()
            self._first_version = self._added._version
        return self._added

    def allowed(self) -> Tensor:
        """The mask as bool, made once; the added one where somebody has written to it."""
        if self._is_changed():
            return self.written_out()
        if self._allowed is None:
            self._allowed = self._make()
        return self._allowed

    def _is_changed(self) -> bool:
        return self._added is not None and self._added._version != self._first_version

    def _twin(self) -> Tensor:
        """The same, to be written to."""
        if self._is_changed():
            return self.written_out().clone()
        kept, shape = self._allowed, tuple(self.shape)
        make = self._make if kept is None else lambda: kept
        return PatternMask.of(shape, self.dtype, self.device, self._rule, make)

    @classmethod
    def __torch_function__(
        cls,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _ASKS:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        if func in _SAME and _stays(func, args, kwargs):
            return args[0]
        if func is Tensor.clone and not kwargs:
            return args[0]._twin()
        if func == _SET_GRADIENT and not args[1]:  # as it is
            return None
        if func is Tensor.__getitem__ and (whole := _all_of(*args)) is not None:
            return whole
        args, kwargs = tree_map_only(PatternMask, PatternMask.written_out, (args, kwargs))
        return func(*args, **kwargs)


def _has_numbers(*tensors: Tensor | None) -> bool:
    """Whether there is something to look at: no trace, no meta or fake tensors, no vmap."""
    for one in tensors:
        if one is not None and (one.is_meta or is_tracing(one) or _is_wrapped(one)):
            return False
    return True


def _added(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    zero = torch.zeros((), dtype=dtype, device=allowed.device)
    return torch.where(allowed, zero, torch.finfo(dtype).min)


def _stays(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether it would be the same mask."""
    if func is not Tensor.to:
        return not kwargs
    return all(_is_that_of(args[0], one) for one in (*args[1:], *kwargs.values()))


def _is_that_of(mask: Tensor, one: Any) -> bool:
    if isinstance(one, torch.dtype):
        return one == mask.dtype
    if isinstance(one, torch.device | str):
        device = torch.device(one)
        return device.type == mask.device.type and device.index in (None, mask.device.index)
    return isinstance(one, bool)  # non_blocking, copy


def _all_of(mask: Any, index: Any) -> PatternMask | None:
    """The mask where slices leave nothing out."""
    parts = index if isinstance(index, tuple) else (index,)
    if not isinstance(mask, PatternMask) or len(parts) > 4:
        return None
    for one, size in zip(parts, mask.shape, strict=False):
        if not isinstance(one, slice) or one.indices(size) != (0, size, 1):
            return None
    return mask


def foveal_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: Any = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] = masking_utils.causal_mask_function,
    attention_mask: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    use_vmap: bool = False,
    device: Any = "cpu",
    **_: Any,
) -> Tensor:
    """What transformers asks for the mask of a pass: see its `AttentionMaskInterface`."""
    device = torch.device(device)
    options = {"mask_function": mask_function, "use_vmap": use_vmap, "device": device}
    sizes = (batch_size, q_length, kv_length)

    def allowed(q_offset: Any = q_offset) -> Tensor:
        found = masking_utils.sdpa_mask(
            *sizes,
            q_offset,
            kv_offset,
            attention_mask=attention_mask,
            **options,
            allow_is_causal_skip=False,
        )
        assert found is not None
        return found

    if not _has_numbers(torch.empty(0, device=device), attention_mask):
        return _added(allowed(), dtype)
    first = int(q_offset)  # that of a static cache is a tensor, which its next update changes
    padding = masking_utils.prepare_padding_mask(attention_mask, kv_length, kv_offset)
    places = Sizes(batch_size, (first, q_length), (kv_offset, kv_length), device)
    rule = (selection_of if q_length == 1 else rule_of)(mask_function, places, padding)
    shape = (batch_size, 1, q_length, kv_length)
    return PatternMask.of(shape, dtype, device, rule, lambda: allowed(first))
