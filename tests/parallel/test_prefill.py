"""A prompt on many ranks, and one that writes: logits and tokens of one process."""

import functools

import pytest
import torch

import foveal
from foveal import parallel
from foveal import patterns as P
from foveal.generation import Continued, Sampler, generate


def layout_of_heads():
    """Two heads, one of which reads the block before its own, the other all blocks before."""
    near = torch.eye(16).bool() | torch.ones(16, 16).tril(-1).triu(-1).bool()
    return torch.stack((near, torch.ones(16, 16).tril().bool()))


TINY = {"num_tokens": 20, "dim": 16, "depth": 2, "heads": 2, "dim_head": 8, "max_seq_len": 128}
transformer = functools.partial(foveal.TransformerLM, **TINY)
hierarchical = functools.partial(foveal.HTransformer1D, **TINY, block_size=4, causal=True)
MODELS = {
    "windows of two sizes": lambda: transformer(pattern=[P.SlidingWindow(9), P.SlidingWindow(3)]),
    "full, alibi": lambda: transformer(pattern=P.Full(causal=True), positions="alibi"),
    "strided, t5": lambda: transformer(pattern=P.Strided(8), positions="t5"),
    "fixed, sinks": lambda: transformer(pattern=P.Fixed(8, 2), sinks=True, softcap=5.0),
    "prefix and window": lambda: transformer(pattern=P.Prefix(4) | P.SlidingWindow(5)),
    "a pattern a head": lambda: transformer(
        pattern=P.BlockSparse(layout_of_heads(), 8, causal=True)
    ),
    "one key head": lambda: transformer(
        pattern=[P.SlidingWindow(7), P.Pyramid(4, causal=True)], kv_heads=1, tie_embeddings=True
    ),
    "pyramid": lambda: hierarchical(shift_tokens=False),
    "coarse queries": lambda: hierarchical(queries="coarse", shift_tokens=False),
    "shifted, reversible": lambda: hierarchical(shift_tokens=True, reversible=True),
}
POOLED = ("one key head", "pyramid", "coarse queries", "shifted, reversible")
STEPS = 6


def decoded(model, logits, state):
    """Logits of a few steps after a prompt, the likeliest token each."""
    found = [logits]
    for _ in range(STEPS):
        logits, state = model.step(found[-1].argmax(-1), state)
        found.append(logits)
    return torch.stack(found)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_one_rank_goes_on_as_one_process_would(name, known):
    """Logits of prompt and steps to 1e-10 in float64, and tokens drawn; a rank may have none."""
    torch.manual_seed(0)
    model = MODELS[name]().double().eval()
    prompt, most = torch.randint(20, (2, 83)), 83 + STEPS if known else None
    with torch.no_grad():
        wanted = decoded(model, *model.prefill(prompt, most))
    logits, state = model.prefill(prompt, most)
    size = state.num_bytes
    drawn, _ = generate(Continued(model, logits, state), prompt, 5, sampler=Sampler(seed=3))
    lengths = (16, 48, 19) if name in POOLED else (30, 0, 53)

    def act(rank):
        own = prompt.split(lengths, 1)[rank.rank]
        read = functools.partial(parallel.prefill, model, own, rank, max_length=most)
        found = [read(to=to) for to in (0, 2)]
        return found[0] if rank.rank == 0 else found[rank.rank - 1]

    first, nothing, last = parallel.simulate(3, act)
    assert nothing == (None, None)
    for logits, state in (first, last):
        assert state.num_bytes == size
        again = Continued(model, logits, state.clone())
        tokens, _ = generate(again, prompt, 5, sampler=Sampler(seed=3))
        assert torch.equal(tokens, drawn)
        torch.testing.assert_close(decoded(model, logits, state), wanted, rtol=0, atol=1e-10)


def test_only_what_decoding_reads_moves():
    """Counted at the exchange: of a window its last keys, of a pyramid a few clusters a level."""
    length, window, block = 4096, 32, 8
    model = transformer(pattern=[P.SlidingWindow(window), P.Pyramid(block, causal=True)])
    model.eval().max_seq_len = length
    prompt = torch.randint(20, (1, length))

    def act(rank):
        own = parallel.take(prompt, rank, align=64)
        parallel.prefill(model, own, rank)  # ranks ask each other what they need
        rank.bytes_received = 0
        parallel.prefill(model, own, rank, to=0)
        received = rank.bytes_received
        rank.bytes_received = 0
        parallel.prefill(model, own, rank, to=1)
        return received - rank.bytes_received, received

    (more, received), *_ = parallel.simulate(4, act)
    token, levels = 2 * 2 * 8 * 4, length.bit_length()
    moved = (window + 2 * block * levels) * token + 4 * 16
    assert 0 < more <= moved
    assert received < 0.1 * 2 * length * token


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        (lambda: foveal.HourglassTransformerLM(dim=16, heads=2), {}, "is a Hourglass"),
        (lambda: transformer(pattern=P.SlidingWindow(4, causal=False)), {}, "must be causal"),
        (MODELS["pyramid"], {"to": 2}, "to must name one of 2 ranks"),
        (MODELS["pyramid"], {"max_length": 100}, "max_length must hold the prompt of 120 tokens"),
        (
            lambda: foveal.TransformerLM(**{**TINY, "max_seq_len": 90}),
            {},
            "from 1 to max_seq_len=90 tokens.*got 120",
        ),
    ],
)
def test_what_cannot_be_read_by_ranks_is_refused(model, options, words):
    """In one line, with what to do instead."""
    made = model()

    def act(rank):
        with pytest.raises(ValueError, match=words) as caught:
            parallel.prefill(made, torch.zeros(1, 60, dtype=torch.long), rank, **options)
        assert "\n" not in str(caught.value)

    parallel.simulate(2, act)
