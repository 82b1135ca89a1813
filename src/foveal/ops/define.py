"""Operators of our own: opaque to torch.compile and export."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def define(name: str, function: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """Register ``foveal::<name>``, which runs `function` on every device, and return it.

    torch.library.custom_op does the same, but the first call of what it makes imports the
    compiler: a second, and 60 MB.

    Args:
        function: the computation, with annotated arguments; must not change or return them.
        fake: the same call on shapes alone.
    """
    schema = torch.library.infer_schema(function, mutates_args=())
    torch.library.define(f"foveal::{name}", str(schema), tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.impl(f"foveal::{name}", "CompositeExplicitAutograd", function)
    torch.library.register_fake(f"foveal::{name}", fake)
    return getattr(torch.ops.foveal, name).default
