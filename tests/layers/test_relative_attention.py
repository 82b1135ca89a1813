"""Relative attention: the formula of Transformer-XL, pair by pair, under every implementation."""

import pytest
import torch

from foveal import patterns as P
from foveal.layers import Relative, RelativeAttention

PATTERNS = [
    P.Full(),
    P.Full(causal=True),
    P.SlidingWindow(5),
    P.SlidingWindow(4, causal=False),
    P.Strided(6),
]


def layer(pattern, stride=1, kv_heads=None):
    torch.manual_seed(0)
    shared = Relative(12, 2, 6)
    torch.nn.init.normal_(shared.u)
    torch.nn.init.normal_(shared.w)
    module = RelativeAttention(12, pattern, 2, 6, kv_heads, shared).double()
    shared.double()
    module.stride = stride
    return module


def by_formula(module, x):
    """((q + u) . k + (q + w) . R s(i - j)) / sqrt(d), written out for each pair."""
    q, k, v = module._project(x, 0)
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
    shared, n = module.relative.shared, x.shape[1]
    i, j = torch.arange(n)[:, None], torch.arange(n)[None]
    r = module.relative.to_r(shared.sinusoids((i - j) * module.stride)).unflatten(-1, (2, 6))
    content = (q + shared.u[:, None]) @ k.mT
    position = torch.einsum("bhid,ijhd->bhij", q + shared.w[:, None], r)
    scores = ((content + position) * 6**-0.5).masked_fill(~module.pattern.mask(n), -torch.inf)
    return module.to_out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("length", [1, 2, 13, 70])
def test_equals_the_formula(pattern, length):
    """Dense and sparse patterns give the logits of the paper, scaled by the total shortening."""
    for stride, kv_heads in ((1, None), (6, 1)):
        module = layer(pattern, stride, kv_heads)
        x = torch.randn(2, length, 12, dtype=torch.float64)
        torch.testing.assert_close(module(x), by_formula(module, x), rtol=0, atol=1e-10)


@pytest.mark.parametrize("pattern", [p for p in PATTERNS if p.is_causal], ids=str)
def test_decoding_equals_the_forward_pass(pattern):
    """A token at a time, the caches give the same outputs."""
    module = layer(pattern, 2).eval()
    x = torch.randn(1, 30, 12, dtype=torch.float64)
    with torch.no_grad():
        full = module(x)
        _, cache = module.prefill(x[:, :7], module.make_cache(1))
        for i in range(7, 30):
            y, cache = module.step(x[:, i : i + 1], cache)
            torch.testing.assert_close(y, full[:, i : i + 1], rtol=0, atol=1e-10)


def test_shared_vectors_belong_to_the_model_alone():
    """The layer looks u and w up; its own state is the projections."""
    module = layer(P.Full())
    assert not [name for name, _ in module.named_parameters() if name.endswith((".u", ".w"))]
    with pytest.raises(ValueError, match="even"):
        Relative(7, 1, 7)
