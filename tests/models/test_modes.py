"""Decoding goes on in another mode, from a copy, and beside other decodings."""

from __future__ import annotations

import copy
import pickle
import random

import pytest
import torch

from foveal import patterns as P
from foveal.models import HourglassTransformerLM, HTransformer1D, TransformerLM

SIZES = {"num_tokens": 20, "dim": 16, "heads": 2, "dim_head": 8, "max_seq_len": 64}
MODELS = {
    "window": lambda: TransformerLM(**SIZES, depth=2, pattern=P.SlidingWindow(8)),
    "mixed": lambda: TransformerLM(**SIZES, depth=2, pattern=[P.Strided(4), P.Full(causal=True)]),
    "blocks": lambda: TransformerLM(
        **SIZES, depth=2, pattern=[P.Fixed(8, 2), P.Blocks(4, True, 1)]
    ),
    "hourglass": lambda: HourglassTransformerLM(**SIZES, depth=(1, 1, 1), shorten_factor=2),
    "h-transformer": lambda: HTransformer1D(**SIZES, depth=1, block_size=4, causal=True),
    "reversible": lambda: HTransformer1D(
        **SIZES, depth=1, block_size=4, causal=True, reversible=True, shift_tokens=True
    ),
}
models = pytest.mark.parametrize("name", MODELS)


def made(name, count=1):
    """A model, and for each of some texts (1, 40) its tokens and logits."""
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    texts = [torch.randint(0, 20, (1, 40)) for _ in range(count)]
    with torch.no_grad():
        return model, [(text, model(text)) for text in texts]


def go_on(step, cache, text, wanted, places):
    """Decode tokens of a text at some places, and compare."""
    for place in places:
        logits, cache = step(text[:, place], cache)
        assert not logits.requires_grad
        torch.testing.assert_close(logits, wanted[:, place], rtol=1e-4, atol=1e-4)
    return cache


@models
def test_a_stepper_knows_no_gradients(name):
    """Made where there are none and used where there are, it computes the same and keeps none."""
    model, [(text, wanted)] = made(name)
    with torch.no_grad():
        step, (_, cache) = model.stepper(1), model.prefill(text[:, :5])
    assert torch.is_grad_enabled()
    go_on(step, cache, text, wanted, range(5, 15))


@models
@pytest.mark.parametrize("inside", ["prefill", "step", "clone"])
def test_into_inference_mode_and_out_of_it(name, inside):
    """A state that was begun in one mode goes on in the other, past the growth of its buffers."""
    model, [(text, wanted)] = made(name)
    with torch.inference_mode(inside == "prefill"):
        _, cache = model.prefill(text[:, :5], 40)
    with torch.inference_mode(inside == "step"):
        cache = go_on(model.step, cache, text, wanted, range(5, 12))
    with torch.inference_mode(inside == "clone"):
        cache = cache.clone()
    go_on(model.step, cache, text, wanted, range(12, 25))


@models
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_goes_its_own_way(name, copied):
    """Deep or through a file, in the midst of a generation: both go on as if alone."""
    model, [(text, wanted), (other, _)] = made(name, 2)
    with torch.no_grad():
        step, (_, cache) = model.stepper(1), model.prefill(text[:, :7])
    cache = go_on(step, cache, text, wanted, range(7, 12))
    twin = copied(cache)
    for place in range(12, 20):
        _, cache = step(other[:, place], cache)
    go_on(step, twin, text, wanted, range(12, 25))


@models
def test_generations_may_be_interleaved(name):
    """One stepper serves several texts in any order."""
    model, texts = made(name, 3)
    with torch.no_grad():
        step = model.stepper(1)
        caches = [model.prefill(text[:, : 4 + at])[1] for at, (text, _) in enumerate(texts)]
    places, draw = [4, 5, 6], random.Random(0)
    for at in (draw.randrange(3) for _ in range(45)):
        caches[at] = go_on(step, caches[at], *texts[at], range(places[at], places[at] + 1))
        places[at] += 1
