"""flex_attention: what is wrong is said in words for people."""

from __future__ import annotations

import pytest
import torch
from mod_cases import (
    BATCH,
    HEADS,
    N,
    causal,
    softcap,
    table,
    tensors,
)
from torch.nn.attention import flex_attention as theirs

import foveal


def _branch(s, b, h, q, k):
    return s if q > k else s * 2


WRONG = {
    "score_mod must take the arguments": {"score_mod": causal},
    "score_mod must be a function": {"score_mod": 3},
    "score_mod must return a tensor": {"score_mod": lambda s, b, h, q, k: 1.0},
    "score_mod must return the new score, got torch.bool": {
        "score_mod": lambda s, b, h, q, k: q >= k
    },
    "score_mod must return one number": {"score_mod": lambda s, b, h, q, k: table[h]},
    "score_mod must not branch": {"score_mod": _branch},
    "score_mod must not read": {"score_mod": lambda s, b, h, q, k: s * q.item()},
    "score_mod must not draw": {"score_mod": lambda s, b, h, q, k: s + torch.randn_like(s)},
    "block_mask must be a BlockMask or None, got a function": {"block_mask": causal},
    "got a pattern": {"block_mask": foveal.patterns.Full()},
    "got a tensor": {"block_mask": torch.ones(N, N)},
    "scale must be": {"scale": "1"},
    "return_lse must be": {"return_lse": 2},
    "return_lse must be left out": {"return_lse": True, "return_aux": theirs.AuxRequest()},
    "return_aux must be": {"return_aux": True},
    "kernel_options must be": {"kernel_options": 3},
    "BACKEND": {"kernel_options": {"BACKEND": "FLASH"}},
    "enable_gqa must be": {"enable_gqa": "yes"},
}


@pytest.mark.parametrize("words", WRONG)
def test_errors_say_what_was_expected(words):
    """Arguments, and what mods return."""
    q, k, v = tensors()
    with pytest.raises((TypeError, ValueError), match=words):
        foveal.flex_attention(q, k, v, **WRONG[words])


def mask_of(mod, lengths=(N, N), batch=1, heads=1, block=128):
    """A BlockMask of partial blocks, made without calling its mod."""
    rows, columns = (-(-n // block) for n in lengths)
    count = torch.full((batch, heads, rows), columns, dtype=torch.int32)
    index = torch.arange(columns, dtype=torch.int32).expand(batch, heads, rows, columns)
    return theirs.BlockMask.from_kv_blocks(
        count, index, BLOCK_SIZE=block, mask_mod=mod, seq_lengths=lengths, compute_q_blocks=False
    )


WRONG_MASKS = {
    "mask_mod must return a bool": mask_of(lambda b, h, q, k: (q - k) * 1.0),
    "mask_mod must return a tensor": mask_of(lambda b, h, q, k: True),
    "mask_mod must return one number": mask_of(lambda b, h, q, k: documents_of(q)),
    "mask_mod must take": mask_of(softcap),
    "block_mask must be of the lengths of query and key": mask_of(causal, (N, N - 1)),
    "block_mask must be of batch and heads": mask_of(causal, batch=3),
    "block_mask was cut": mask_of(causal)[:, :, :1],
}


def documents_of(q):
    return torch.ones(3, dtype=torch.bool) & (q > 0)


@pytest.mark.parametrize("words", WRONG_MASKS)
def test_errors_of_block_masks(words):
    """Masks of other sizes, and mods that are no masks."""
    q, k, v = tensors()
    with pytest.raises((TypeError, ValueError), match=words):
        foveal.flex_attention(q, k, v, block_mask=WRONG_MASKS[words])


def test_errors_of_tensors():
    """Shapes, dtypes and devices."""
    q, k, v = tensors()
    fewer = tensors(kv_heads=1)
    for words, given in {
        "query must be a tensor": (3, k, v),
        "value must be": (q, k, v[0]),
        "one floating dtype": (q.float(), k, v),
        "the same head_dim": (q[..., :3], k, v),
        "the same batch, heads and length": (q, k, v[:, :, :4]),
        "enable_gqa=True": (q, *fewer[1:]),
        "batch size": (q[:1], k, v),
    }.items():
        with pytest.raises((TypeError, ValueError), match=words):
            foveal.flex_attention(*given)
    with pytest.raises(ValueError, match="on one device"):
        foveal.flex_attention(q, k.to("meta"), v)
    mask = mask_of(causal)
    with pytest.raises(ValueError, match="device of query"):
        foveal.flex_attention(*(x.to("meta") for x in (q, k, v)), block_mask=mask)
    shapes = foveal.flex_attention(*(x.to("meta") for x in (q, k, v)), return_lse=True)
    assert [tuple(x.shape) for x in shapes] == [(BATCH, HEADS, N, 5), (BATCH, HEADS, N)]
