"""prefill(chunk=) and extend: many tokens over a cache give what the whole forward pass gives.

The suite tries some of the splits of 97 tokens; `FOVEAL_SPLITS=1` in the environment tries all.
"""

from __future__ import annotations

import os

import pytest
import torch

from foveal import models as M
from foveal import patterns as P
from foveal.generation import Recorded
from foveal.testing import assert_close

LENGTH = 97
SPLITS = range(1, LENGTH) if os.environ.get("FOVEAL_SPLITS") else (1, 15, 32, 49, 96)
TEXT = {"num_tokens": 20, "dim": 16, "heads": 2, "dim_head": 8, "max_seq_len": LENGTH + 3}


def layers(*patterns: P.Pattern, **options) -> M.TransformerLM:
    return M.TransformerLM(**TEXT, depth=len(patterns), pattern=list(patterns), **options)


def hourglass(**options) -> M.HourglassTransformerLM:
    return M.HourglassTransformerLM(**{**TEXT, "depth": (1, (1, 1, 1), 1), **options})


def pyramid(**options) -> M.HTransformer1D:
    return M.HTransformer1D(**TEXT, depth=2, block_size=4, causal=True, **options)


MODELS = {
    "windows": lambda: layers(P.SlidingWindow(9), P.Full(causal=True), P.Blocks(8, True, 1)),
    "grouped": lambda: layers(P.SlidingWindow(30), P.Strided(8), kv_heads=1),
    "thinned": lambda: layers(
        P.Fixed(8, 2),
        P.TextImage(13, P.Neighborhood((8, 12), 3, causal="raster")),
        P.BlockSparse.fixed(112, block_size=16, attention="unidirectional"),
    ),
    "shaped": lambda: layers(
        P.SlidingWindow(9), P.Fixed(8, 2), P.Full(causal=True), sinks=True, softcap=3.0
    ),
    "heads": lambda: layers(
        P.BlockSparse.bigbird(
            112, 8, num_heads=2, different_layout_per_head=True, attention="unidirectional"
        )
    ),
    "pyramid": lambda: pyramid(shift_tokens=True, relative_bias=True),
    "coarse": lambda: pyramid(queries="coarse", reversible=True),
    "siblings": lambda: pyramid(neighbors="sibling", relative_bias="shared", kv_heads=1),
    "hourglass": lambda: hourglass(shorten_factor=(2, 3), updown_sample_type="linear"),
    "plain": lambda: hourglass(shorten_factor=(3, 2), attn_resampling=False),
    "relative": lambda: hourglass(
        depth=(1, 1, 1),
        shorten_factor=3,
        positions="relative",
        pattern=[P.SlidingWindow(6), P.Full(causal=True)],
    ),
    "package": lambda: hourglass(shorten_factor=3, depth=(1, 1, 1), norms="single"),
}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> M.CausalLM:
    torch.manual_seed(0)
    model = MODELS[request.param]().double().eval()
    for name, weight in model.named_parameters():
        if name.endswith(("sinks", "rel_bias")):  # zeros at first
            torch.nn.init.normal_(weight)
    return model


def test_every_split(model: M.CausalLM) -> None:
    """A prompt in two pieces, in many, then a step: all logits are those of one forward pass."""
    tokens = torch.randint(20, (2, LENGTH + 1))
    with torch.no_grad():
        want = model(tokens)
    for split in SPLITS:
        logits, cache = model.prefill(tokens[:, :split])
        assert_close(logits, want[:, split - 1], 1e-9)
        rest, cache = model.extend(tokens[:, split:LENGTH], cache)
        assert_close(rest, want[:, split:LENGTH], 1e-9)
        chunk = max(split, 5)  # in ones is in steps, below
        logits, cache = model.prefill(tokens[:, :LENGTH], LENGTH + 1, chunk=chunk)
        assert_close(logits, want[:, LENGTH - 1], 1e-9)
        logits, cache = model.step(tokens[:, LENGTH], cache)
        assert_close(logits, want[:, LENGTH], 1e-9)
        assert cache.position == LENGTH + 1


def test_steps_and_pieces_mix(model: M.CausalLM) -> None:
    """Pieces after steps after pieces, from an empty cache on."""
    tokens = torch.randint(20, (1, 60))
    with torch.no_grad():
        want = model(tokens)
    cache = model.make_cache(1)
    first = 0
    for count in (5, 1, 1, 7, 20, 1, 3, 22):
        piece = tokens[:, first : first + count]
        if count == 1:
            logits, cache = model.step(piece[:, 0], cache)
            assert_close(logits, want[:, first], 1e-9)
        else:
            logits, cache = model.extend(piece, cache)
            assert_close(logits, want[:, first : first + count], 1e-9)
        first += count


def test_rows_are_chosen_between_pieces(model: M.CausalLM) -> None:
    """Beams: rows of a state in another order, twice or not at all, go on as their own texts."""
    tokens = torch.randint(20, (3, 60))
    _, cache = model.prefill(tokens[:, :17])
    beams = torch.tensor([2, 0, 2, 2])
    chosen = cache.select(beams)
    text = torch.cat((tokens[beams, :17], torch.randint(20, (4, 33))), 1)
    with torch.no_grad():
        want, others = model(text), model(tokens)
    logits, chosen = model.extend(text[:, 17:30], chosen)
    assert_close(logits, want[:, 17:30], 1e-9)
    kept = torch.tensor([3, 1])
    chosen = chosen.select(kept)
    logits, chosen = model.step(text[kept, 30], chosen)
    assert_close(logits, want[kept, 30], 1e-9)
    logits, chosen = model.extend(text[kept, 31:], chosen)
    assert_close(logits, want[kept, 31:], 1e-9)
    # what they were chosen from has not moved
    assert_close(model.extend(tokens[:, 17:], cache)[0], others[:, 17:], 1e-9)


def test_pieces_follow_prepared_steps(model: M.CausalLM) -> None:
    """A state that `generate`'s steps have written in is extended, and stepped on."""
    tokens = torch.randint(20, (2, 50))
    with torch.no_grad():
        want = model(tokens)
    step = model.stepper(2)
    _, cache = model.prefill(tokens[:, :11], max_length=50)
    first = 11
    for count in (9, 1, 12):
        for _ in range(2):
            logits, cache = step(tokens[:, first], cache)
            assert_close(logits, want[:, first], 1e-9)
            first += 1
        logits, cache = model.extend(tokens[:, first : first + count], cache)
        assert_close(logits, want[:, first : first + count], 1e-9)
        first += count
    written = model.generate(tokens[:, :20], 7, temperature=0)
    _, cache = model.prefill(written)
    with torch.no_grad():
        whole = model(torch.cat((written, tokens[:, :9]), 1))
    assert_close(model.extend(tokens[:, :9], cache)[0], whole[:, 27:], 1e-9)


def test_a_cache_of_a_window_stays_small() -> None:
    """What is kept after a long prompt in pieces is what the patterns need."""
    model = layers(P.SlidingWindow(9), P.Blocks(8, True, 1)).eval()
    tokens = torch.randint(20, (1, LENGTH))
    _, whole = model.prefill(tokens)
    _, cache = model.prefill(tokens, chunk=10)
    assert cache.num_bytes == whole.num_bytes < 2 * 2 * 16 * 4 * LENGTH // 2


def test_package_without_a_state() -> None:
    """The package's hierarchical attention starts over, and its hourglass goes token by token."""
    torch.manual_seed(0)
    sizes = {**TEXT, "depth": (1, 1, 1), "shorten_factor": 3, "norms": "single"}
    compat = "hourglass-transformer-pytorch-0.0.6"
    model = M.HourglassTransformerLM(**sizes, compat=compat).eval()
    tokens = torch.randint(20, (1, 31))
    with torch.no_grad():
        want = model(tokens)
    _, cache = model.prefill(tokens[:, :10])
    assert_close(model.extend(tokens[:, 10:], cache)[0], want[:, 10:], 1e-5)


def test_dalle() -> None:
    """Words, a picture, or both at once; shifted tokens, reversible layers."""
    torch.manual_seed(0)
    model = M.DALLE(
        dim=16,
        depth=4,
        heads=2,
        dim_head=8,
        num_text_tokens=11,
        text_seq_len=13,
        num_image_tokens=7,
        image_grid=(8, 10),
        attn_types=("full", "axial_row", "axial_col", "conv_like"),
        shift_tokens=True,
        reversible=True,
    )
    model = model.double().eval()
    text, image = torch.randint(1, 11, (2, 13)), torch.randint(7, (2, 79))
    with torch.no_grad():
        want = model(text, image)
    ids = torch.cat((torch.zeros(2, 1, dtype=torch.long), text, image), 1)
    for split in (1, 5, 13, 14, 15, 40, 92):
        logits, cache = model.prefill(text[:, : split - 1], whole_text=False)
        if split > 14:
            logits, cache = model.prefill(text, image[:, : split - 14], chunk=11)
            assert_close(logits, want[:, split - 1, model.num_text_tokens :], 1e-9)
        logits, cache = model.extend(ids[:, cache.position :], cache)
        assert_close(logits, want[:, split:], 1e-9)
    with pytest.raises(ValueError, match="got 2 more tokens"):
        model.extend(image[:, :2], cache)


def test_a_pair_of_sequences() -> None:
    """The decoder of a pair reads its memory for every one of the added tokens."""
    torch.manual_seed(0)
    depths = {"enc_depth": 1, "dec_depth": 1, "enc_block_size": 4, "dec_block_size": 4}
    model = M.HTransformerSeq2Seq(dim=16, heads=2, dim_head=8, **depths)
    model = model.double().eval()
    source, target = torch.randint(20, (2, 23)), torch.randint(20, (2, 30))
    with torch.no_grad():
        want = model(source, target)
    _, cache = model.prefill(source, target[:, :12], chunk=5)
    assert_close(model.extend(target[:, 12:], cache)[0], want[:, 12:], 1e-9)


def test_recorded() -> None:
    """A state at fixed addresses takes many tokens as well."""
    torch.manual_seed(0)
    options = {"kv_heads": 1, "sinks": True, "softcap": 3.0}
    model = layers(P.SlidingWindow(9), P.Full(causal=True), **options).double().eval()
    tokens = torch.randint(20, (1, 40))
    with torch.no_grad():
        want = model(tokens)
    decoder = Recorded(model, max_length=40)
    _, state = decoder.prefill(tokens[:, :10])
    logits, state = decoder.extend(tokens[:, 10:39], state)
    assert_close(logits, want[:, 10:39], 1e-9)
    logits, state = decoder.step(tokens[:, 39], state)
    assert_close(logits, want[:, 39], 1e-9)


def test_errors() -> None:
    """Too many tokens, none at all, and a chunk that is no size."""
    model = layers(P.SlidingWindow(9)).eval()
    tokens = torch.randint(20, (1, 90))
    _, cache = model.prefill(tokens)
    with pytest.raises(ValueError, match="got 11 more tokens at position 90"):
        model.extend(tokens[:, :11], cache)
    with pytest.raises(ValueError, match="at least one token"):
        model.extend(tokens[:, :0], cache)
    with pytest.raises(ValueError, match="chunk must be a positive int"):
        model.prefill(tokens, chunk=0)
