"""Tensors of other kinds, nested, sparse or quantised, are refused by name."""

import pytest
import torch
from torch import Tensor

import foveal
from foveal import patterns as P
from foveal.ops import known

pytestmark = pytest.mark.filterwarnings(
    "ignore:The PyTorch API", "ignore:Sparse CSR", "ignore:torch.quantize"
)
WINDOW = P.SlidingWindow(4)
KINDS = {
    "nested": lambda x: torch.nested.nested_tensor(list(x)),
    "torch.sparse_coo": lambda x: x.to_sparse(),
    "torch.sparse_csr": lambda x: (
        x.flatten(1).to_sparse_csr() if x.ndim > 2 else x.to_sparse_csr()
    ),
    "torch._mkldnn": lambda x: x.to_mkldnn(),
}
MASK = torch.ones(2, 12, dtype=torch.bool)


def parts(*names: str) -> dict[str, Tensor]:
    return {name: torch.randn(2, 2, 12, 8) for name in names}


def merged(out: Tensor, lse: Tensor) -> object:
    return foveal.merge([(torch.zeros(2, 12, 8), torch.zeros(2, 12)), (out, lse)])


ROWS = {name: torch.randn(12, 2, 8) for name in "qkv"}
OPTIONS = {"bias": torch.zeros(2, 2, 12, 12), "key_mask": MASK, "scale": torch.ones(2, 2, 1, 1)}
CALLS = {
    "attend": ({**parts(*"qkv"), **OPTIONS}, lambda x: foveal.attend(**x, pattern=WINDOW)),
    "known": (parts(*"qkv"), lambda x: foveal.attend(**x, pattern=WINDOW)),
    "known with a mask": (
        parts(*"qkv") | {"key_mask": MASK},
        lambda x: foveal.attend(**x, pattern=WINDOW),
    ),
    "at an offset": (
        parts(*"qkv") | {"key_mask": MASK},
        lambda x: foveal.attend(**x, pattern=WINDOW, q_offset=-1),
    ),
    "by rows": (
        parts(*"qkv") | OPTIONS,
        lambda x: foveal.attend(**x, pattern=WINDOW, dropout_p=0.5),
    ),
    "varlen": (
        {**ROWS, "cu_seqlens_q": torch.tensor([0, 5, 12])},
        lambda x: foveal.attend_varlen(**x, cu_seqlens_k=[0, 5, 12], pattern=WINDOW),
    ),
    "selected": (
        {**parts(*"qkv"), "blocks": torch.zeros(2, 2, 3, 1, dtype=torch.long)},
        lambda x: foveal.attend_selected(**x, block_size=4),
    ),
    "flex": (parts("query", "key", "value"), lambda x: foveal.flex_attention(**x)),
    "merge": ({"out": torch.zeros(2, 12, 8), "lse": torch.zeros(2, 12)}, lambda x: merged(**x)),
    "blocks": ({"layout": torch.ones(3, 3)}, lambda x: P.BlockSparse(**x, block_size=4)),
    "documents": ({"lengths": torch.tensor([[4, 8]])[0]}, lambda x: P.Documents(**x)),
}


@pytest.mark.parametrize("call", CALLS)
def test_tensors_of_other_kinds_are_named(call):
    """Each tensor of each function: also where a call like it is known, which torch aborts on."""
    known.CALLS.clear()
    tensors, run = CALLS[call]
    for _ in range(4):  # from the third on it is told at a glance
        run(tensors)
    for kind, make in KINDS.items():
        for name, x in tensors.items():
            if kind == "torch.sparse_csr" and x.ndim < 2:
                continue
            if kind == "torch._mkldnn" and x.dtype != torch.float32:
                continue
            with pytest.raises(ValueError, match=f"{name}.* must be .*{kind}"):
                run({**tensors, name: make(x)})


def test_parts_of_biases_and_of_merges():
    """Tensors within a bias are named by their fields; parts on two devices and of ints too."""
    q = k = v = torch.randn(1, 2, 12, 8)
    for bias in (foveal.TableBias(torch.randn(23, 2)), foveal.alibi(2)):
        field = f"{type(bias).__name__}.{bias._fields[0]}"
        for make in (KINDS["nested"], KINDS["torch.sparse_coo"], lambda x: x.to("meta")):
            with pytest.raises(ValueError, match=f"{field} must"):
                foveal.attend(
                    q, k, v, WINDOW, bias=bias._replace(**{bias._fields[0]: make(bias[0])})
                )
    small = torch.quantize_per_tensor(torch.ones(1), 0.1, 0, torch.qint8)
    with pytest.raises(ValueError, match="scale must not be quantised"):
        foveal.attend(q, k, v, WINDOW, scale=small)
    out, lse = torch.zeros(2, 3, 4), torch.zeros(2, 3)
    with pytest.raises(ValueError, match="one device, got out on meta"):
        foveal.merge([(out, lse), (out.to("meta"), lse.to("meta"))])
    with pytest.raises(ValueError, match=r"floating, got out torch\.int64"):
        foveal.merge([(out, lse), (out.long(), lse)])
