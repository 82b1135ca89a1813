"""Every family on a CUDA device: the same numbers as the oracle, and as the CPU.

Skipped without a device; `make gpu` runs them, and the benchmarks, on a machine that has one.
"""

from __future__ import annotations

import pytest
import torch

import foveal
from foveal import patterns as P
from foveal.bench.machine import synchronize
from foveal.testing import assert_close, dense_attention

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)
pytestmark = pytest.mark.gpu
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 2e-2, torch.float16: 5e-3}

PATTERNS = {
    "full": (P.Full(causal=True), 300),
    "window": (P.SlidingWindow(70), 1500),
    "blocks": (P.Blocks(64, causal=True, lookback=1), 1300),
    "halo": (P.Halo((36, 40), 8, 4), 1440),
    "neighborhood": (P.Neighborhood((35, 40), 7), 1400),
    "text and image": (P.TextImage(40, P.Neighborhood(36, 5, causal="corner")), 1336),
    "axial": (P.Axial((36, 40), "column", causal=True), 1440),
    "strided": (P.Strided(32), 1100),
    "block-sparse": (P.BlockSparse.longformer(2048, 64), 2048),
    "union": (P.SlidingWindow(40) | P.Fixed(64, 4), 1200),
}


def tensors(length, dtype, heads=4, kv_heads=2, dim=64):
    torch.manual_seed(0)
    return [
        torch.randn(2, count, length, dim, device="cuda").to(dtype).requires_grad_()
        for count in (heads, kv_heads, kv_heads)
    ]


@pytest.mark.parametrize("impl", [None, "tiled", "dense", "flex"])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("name", PATTERNS)
def test_attend_equals_the_oracle(name, dtype, impl):
    """Outputs and gradients, grouped heads included."""
    pattern, length = PATTERNS[name]
    given = tensors(length, dtype)
    exact = [x.detach().double().requires_grad_() for x in given]
    out = foveal.attend(*given, pattern, impl=impl)
    want, _ = dense_attention(*exact, pattern)
    assert_close(out, want, rtol=TOLERANCE[dtype])
    weight = torch.randn_like(want)
    grads = torch.autograd.grad((out * weight).sum(), given)
    expected = torch.autograd.grad((want * weight).sum(), exact)
    for got, grad in zip(grads, expected, strict=True):
        assert_close(got, grad, rtol=TOLERANCE[dtype])


LM = {"num_tokens": 20, "dim": 32, "heads": 2, "dim_head": 16, "max_seq_len": 256}
MODELS = {
    "transformer": lambda: foveal.TransformerLM(**LM, depth=2, pattern=P.SlidingWindow(40)),
    "hourglass": lambda: foveal.HourglassTransformerLM(**LM, depth=(1, 2, 1), shorten_factor=3),
    "h-transformer": lambda: foveal.HTransformer1D(**LM, depth=2, causal=True, block_size=16),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_compute_and_decode_as_on_the_cpu(name):
    """Logits, gradients, and greedy tokens with and without a cache."""
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    tokens = torch.randint(0, 20, (2, 150))
    want = model(tokens)
    model.cuda()
    got = model(tokens.cuda())
    assert_close(got.cpu(), want, rtol=1e-3)
    got.square().sum().backward()
    synchronize("cuda")
    prompt = tokens[:, :30].cuda()
    with_cache, without = (
        model.generate(prompt, 40, temperature=0.0, use_cache=use) for use in (True, False)
    )
    assert torch.equal(with_cache, without)


@pytest.mark.parametrize("name", ["halonet_cifar", "sepvit_cifar"])
def test_image_models_compute_as_on_the_cpu(name):
    """At a size that no block divides."""
    torch.manual_seed(0)
    model = foveal.create_model(name, num_classes=7).eval()
    images = torch.randn(2, 3, 37, 50)
    want = model(images)
    assert_close(model.cuda()(images.cuda()).cpu(), want, rtol=5e-3)


@pytest.mark.parametrize("name", ["window", "halo", "text and image"])
def test_the_default_compiler(name):
    """torch.compile(fullgraph=True) on the device, forward and backward."""
    pattern, length = PATTERNS[name]
    q, k, v = tensors(length, torch.float32)

    def loss(q, k, v):
        return foveal.attend(q, k, v, pattern).square().sum()

    want = torch.autograd.grad(loss(q, k, v), (q, k, v))
    got = torch.autograd.grad(torch.compile(loss, fullgraph=True)(q, k, v), (q, k, v))
    for ours, expected in zip(got, want, strict=True):
        assert_close(ours, expected, rtol=1e-3)
