"""Recorded steps: what a graph replays is what an ordinary step computes, at every position."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from foveal import patterns as P
from foveal.caches.fixed import load
from foveal.generation import Recorded, Sampler, generate
from foveal.models import DALLE, HourglassTransformerLM, TransformerLM
from foveal.models.dalle.generate import Pictures

LENGTH = 48
PATTERNS = [
    P.Full(causal=True),
    P.SlidingWindow(5),
    P.Blocks(8, causal=True, lookback=1),
    P.Strided(7),
    P.Fixed(8, 2),
    P.BlockSparse(
        torch.stack([torch.eye(6) + torch.ones(6, 6).tril(-i) for i in range(1, 5)]), 8, True
    ),
    P.TextImage(12, P.Neighborhood((6, 6), 3, causal="corner")),
    P.TextImage(12, P.Axial((6, 6), "row", causal=True)),
]

KINDS = ("full", "axial_row", "axial_col", "conv_like")


def language(pattern, kv_heads=2, depth=2):
    torch.manual_seed(0)
    model = TransformerLM(
        num_tokens=11,
        dim=32,
        depth=depth,
        heads=4,
        dim_head=8,
        kv_heads=4 if pattern.heads else kv_heads,
        max_seq_len=LENGTH,
        pattern=pattern,
    )
    return model.double().eval()


def drawing(**options):
    torch.manual_seed(0)
    model = DALLE(
        dim=24,
        heads=2,
        dim_head=12,
        num_text_tokens=20,
        text_seq_len=7,
        num_image_tokens=13,
        image_grid=(4, 5),
        **{"depth": len(KINDS), "attn_types": KINDS, **options},
    )
    return model.double().eval()


class NoValues(TorchDispatchMode):
    """Refuses what a recording cannot hold: Python asking for the value of a tensor."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func not in (
            torch.ops.aten._local_scalar_dense.default,
            torch.ops.aten.nonzero.default,
            torch.ops.aten.is_nonzero.default,
        ), f"{func} reads a value"
        return func(*args, **(kwargs or {}))


class Traced(Recorded):
    """Traced once and replayed, as a CUDA graph would: Python numbers and branches are frozen."""

    recordings = 0

    def _records(self, device):
        return True

    def _record(self, state):
        load(self._state, state)
        with torch.no_grad(), NoValues():
            graph = make_fx(lambda: self._advance())()  # a method would count as an argument
        self._graph, self.recordings = self, self.recordings + 1
        self.replay = lambda: setattr(self, "_logits", graph())


def compare(ours, theirs, prompts, steps, max_length, tolerance=1e-10):
    """Logits of both decoders after every step of some prompts, one after the other."""
    for prompt in prompts:
        got, mine = ours.prefill(prompt, max_length)
        want, its = theirs.prefill(prompt, max_length)
        assert torch.equal(got, want)
        for step in range(steps):
            token = torch.full((len(prompt),), step % 5, device=prompt.device)
            got, mine = ours.step(token, mine)
            want, its = theirs.step(token, its)
            assert (got - want).abs().max() < tolerance, step


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("decoder", [Recorded, Traced])
def test_a_recorded_step_equals_an_ordinary_one(pattern, decoder):
    """For several prompts in turn, through one recording, to the end of the sequence."""
    model = language(pattern, depth=2 if pattern == P.Full(causal=True) else 1)
    ours = decoder(model)
    prompts = [torch.randint(0, 11, (2, length)) for length in (9, 3, 21)]
    compare(ours, model, prompts, LENGTH - 21, LENGTH)
    if decoder is Traced:
        assert ours.recordings == 1


@pytest.mark.parametrize("decoder", [Recorded, Traced])
@pytest.mark.parametrize(
    ("options", "guidance"),
    [
        ({}, 1.0),
        ({}, 2.0),
        ({"rotary_emb": False}, 1.0),
        ({"shift_tokens": False}, 2.0),  # guidance is a batch of two to every model
        ({"reversible": True}, 1.0),
        ({"stable": True}, 2.0),
    ],
    ids=str,
)
def test_pictures_are_drawn_by_recorded_steps(options, guidance, decoder):
    # each kind of attention once, beside options and guidance in the middle of an image alone
    kinds = ("axial_row", "conv_like") if options or guidance > 1 else KINDS
    model = drawing(depth=len(kinds), attn_types=kinds, **options)
    text = torch.randint(1, 20, (2, 7))
    pictures = Pictures(model, text, guidance)
    ours = decoder(pictures, model.max_seq_len)
    known = [torch.randint(0, 13, (2, 1 + count)) for count in (0, 6)]
    compare(ours, pictures, known, 13, None)


def test_generate_takes_a_recorded_decoder():
    model = language(P.SlidingWindow(5)).float()
    prompts = [[1, 2, 3], [4, 5, 6, 7, 8]]
    greedy = Sampler(temperature=0.0)
    want, lengths = generate(model, prompts, 20, sampler=greedy)
    got, their = generate(Recorded(model), prompts, 20, sampler=greedy)
    assert torch.equal(got, want)
    assert torch.equal(lengths, their)


def test_models_generate_by_recorded_steps():
    model = language(P.SlidingWindow(5))
    prompt = torch.tensor([[1, 2, 3]])
    want = model.generate(prompt, 20, seed=0)
    assert torch.equal(model.generate(prompt, 20, seed=0, recorded=True), want)
    painter = drawing()
    text = torch.randint(1, 20, (1, 7))
    want = painter.generate_image_tokens(text, 2, seed=0)
    assert torch.equal(painter.generate_image_tokens(text, 2, seed=0, recorded=True), want)
    with pytest.raises(ValueError, match="Recompute cannot be recorded"):
        model.generate(prompt, 20, use_cache=False, recorded=True)


def test_errors_say_what_to_do():
    model = language(P.SlidingWindow(5))
    prompt = torch.zeros(1, 3, dtype=torch.long)
    with pytest.raises(ValueError, match="max_length"):
        Recorded(model).prefill(prompt)
    ours = Recorded(model)
    _, state = ours.prefill(prompt, 4)
    with pytest.raises(ValueError, match=r"\(batch,\) = \(1,\), got \(2,\)"):
        ours.step(torch.zeros(2, dtype=torch.long), state)
    ours.step(prompt[:, 0], state)
    with pytest.raises(ValueError, match="max_length=4"):
        ours.step(prompt[:, 0], state)
    with pytest.raises(ValueError, match="latest prefill"):
        ours.step(prompt[:, 0], None)
    with pytest.raises(ValueError, match="16384"):
        ours.prefill(prompt, 20_000)
    pooled = Recorded(language(P.Pyramid(8, causal=True)))
    with pytest.raises(ValueError, match="PyramidCache"):
        pooled.prefill(prompt, 32)
    sizes = {"num_tokens": 11, "dim": 16, "heads": 2, "dim_head": 8, "max_seq_len": 64}
    tall = Recorded(HourglassTransformerLM(**sizes, depth=(1, 1, 1), shorten_factor=2).eval())
    with pytest.raises(ValueError, match="HourglassTransformerLM cannot be recorded"):
        tall.prefill(prompt, 32)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="records on CUDA")
def test_a_cuda_graph_equals_an_ordinary_step():
    model = drawing().float().cuda()
    text = torch.randint(1, 20, (2, 7), device="cuda")
    pictures = Pictures(model, text, 1.0)
    known = [torch.randint(0, 13, (2, 1 + count), device="cuda") for count in (0, 6)]
    compare(Recorded(pictures, model.max_seq_len), pictures, known, 13, None, tolerance=1e-4)
