"""What is read of the masks of transformers is what they say, pair by pair."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

transformers = pytest.importorskip("transformers")

from transformers import masking_utils as M  # noqa: E402

from foveal import patterns as P  # noqa: E402
from foveal.integrations.transformers.attention import foveal_attention  # noqa: E402
from foveal.integrations.transformers.masks import PatternMask, foveal_mask  # noqa: E402
from foveal.integrations.transformers.rules import Rule, Selection  # noqa: E402


def written_out(rule: Rule | Selection, shape: tuple[int, ...]) -> Tensor:
    """(batch, 1, num_queries, num_keys) bool of a rule, by the definition of its patterns."""
    batch, _, queries, _ = shape
    found = torch.zeros(shape, dtype=torch.bool)
    if isinstance(rule, Selection):
        part = slice(rule.low, rule.high)
        found[..., part] = True if rule.mask is None else rule.mask[:, None, None]
        return found
    q_idx, k_idx = torch.arange(queries) + rule.first, torch.arange(rule.num_keys)
    for row in range(batch):
        pattern = rule.patterns[row if len(rule.patterns) > 1 else 0]
        found[row, 0, :, : rule.num_keys] = pattern.allows(q_idx[:, None], k_idx[None])
    if rule.key_mask is not None:
        found[..., : rule.num_keys] &= rule.key_mask[:, None, None]
    return found


def check(mask_function: Callable[..., Any], readable: bool = True, **options: Any) -> Any:
    """The rule of a mask, compared with the mask that transformers itself writes out."""
    options = {"batch_size": 2, "q_length": 23, "kv_length": 23} | options
    options["mask_function"] = mask_function
    expected = M.sdpa_mask(**options, allow_is_causal_skip=False)
    mask = foveal_mask(**options, allow_is_causal_skip=True)
    assert isinstance(mask, PatternMask)
    assert expected is not None
    assert mask.shape == expected.shape
    assert torch.equal(mask == 0, expected), "written out"
    assert (mask.rule is not None) == readable
    if mask.rule is not None:
        assert torch.equal(written_out(mask.rule, expected.shape), expected)
    return mask.rule


PADDING = torch.arange(40)[None] >= torch.tensor([[3], [0]])
IDS = torch.tensor([[0] * 5 + [1] * 9 + [2] * 9, [0] * 1 + [1] * 20 + [2] * 2])
POSITIONS = torch.cat([torch.arange(5), torch.arange(7, 16), torch.arange(9)])[None]
SPANS = torch.tensor([[-1] * 4 + [0] * 6 + [-1] * 2 + [1] * 5 + [-1] * 6, [-1] * 9 + [0] * 14])


def unsymmetric(left: int, right: int) -> Callable[..., Any]:
    """As the encoder of T5Gemma 2 and the audio tower of Gemma 4 have it."""

    def inner(batch: Any, head: Any, q: Any, k: Any) -> Any:
        distance = q - k
        past = (distance >= 0) & (distance < left)
        return past | ((distance < 0) & (-distance < right))

    return inner


def near(window: int) -> Callable[..., Any]:
    """As EmbeddingGemma adds it to a causal window."""
    return lambda batch, head, q, k: abs(q - k) < window


READABLE = {
    "causal": (M.causal_mask_function, P.Full(causal=True)),
    "all": (M.bidirectional_mask_function, P.Full()),
    "window": (M.sliding_window_causal_mask_function(6), P.SlidingWindow(6)),
    "long window": (M.sliding_window_causal_mask_function(99), P.Full(causal=True)),
    "both sides": (M.sliding_window_bidirectional_mask_function(4), P.SlidingWindow(5, False)),
    "one of two": (M.or_masks(M.causal_mask_function, near(5)), None),
    "window and near": (
        M.or_masks(M.sliding_window_causal_mask_function(5), near(5)),
        P.SlidingWindow(5, causal=False),
    ),
    "anything": (
        M.or_masks(M.causal_mask_function, lambda *_: torch.tensor(True)),
        P.Full(),
    ),
    "halves": (unsymmetric(5, 5), P.SlidingWindow(5, causal=False)),
    "chunks": (M.chunked_causal_mask_function(7, torch.tensor([0, 0])), None),
    "padded chunks": (M.chunked_causal_mask_function(7, torch.tensor([3, 0])), None),
    "packed": (M.and_masks(M.causal_mask_function, M.packed_sequence_mask_function(IDS)), None),
    "spans": (M.or_masks(M.causal_mask_function, M.blockwise_overlay(SPANS)), None),
    "spans and window": (
        M.or_masks(M.sliding_window_causal_mask_function(4), M.blockwise_overlay(SPANS)),
        None,
    ),
}
UNREADABLE = {
    "a table of pairs": lambda b, h, q, k: torch.eye(23, dtype=torch.bool)[q, k],
    "a branch": lambda b, h, q, k: q >= k if q.shape else k <= q,
    "every other key": lambda b, h, q, k: (q - k) % 2 == 0,
    "unsymmetric": unsymmetric(3, 6),
    "two-fold": M.or_masks(M.causal_mask_function, M.packed_sequence_mask_function(SPANS)),
    "all but": lambda b, h, q, k: (k <= q) & (k != q - 2),
}


@pytest.mark.parametrize("name", READABLE)
@pytest.mark.parametrize("padded", [False, True])
def test_masks_of_a_pass_become_patterns(name: str, padded: bool) -> None:
    """Without a cache every kind of mask is a pattern, with padding beside it as a key mask."""
    mask_function, pattern = READABLE[name]
    readable = name != "one of two"
    rule = check(mask_function, readable, attention_mask=PADDING[:, :23] if padded else None)
    if pattern is not None:
        assert rule.patterns == (pattern,)
    assert not readable or (rule.key_mask is None) != padded


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_no_pattern_says_is_written_out(name: str) -> None:
    """A mask that symbols do not follow, or that foveal has no pattern for, is not guessed."""
    vmap = name == "a branch"
    check(UNREADABLE[name], readable=False, use_vmap=vmap)


@pytest.mark.parametrize(
    ("q_length", "q_offset", "kv_length", "kv_offset"),
    [
        (5, 18, 23, 0),  # the next tokens of a chat
        (9, 0, 32, 0),  # the first pass into a static cache
        (4, torch.tensor(11), 32, 0),  # and the second
        (6, 20, 12, 14),  # a sliding cache that is full
        (1, 22, 23, 0),  # decoding
        (1, torch.tensor(11), 32, 0),
        (1, 30, 7, 24),
    ],
)
@pytest.mark.parametrize("name", ["causal", "all", "window", "both sides", "padded chunks"])
@pytest.mark.parametrize("padded", [False, True])
def test_places_of_caches(
    name: str, padded: bool, q_length: int, q_offset: Any, kv_length: int, kv_offset: int
) -> None:
    """Queries and keys are counted from wherever a cache stands; unwritten keys are not read."""
    places = {"q_length": q_length, "q_offset": q_offset}
    places |= {"kv_length": kv_length, "kv_offset": kv_offset}
    readable = name != "padded chunks" or q_length > 1  # then there is little to gain
    rule = check(READABLE[name][0], readable, attention_mask=PADDING if padded else None, **places)
    last = int(q_offset) + q_length - kv_offset
    if name in ("causal", "window") and isinstance(rule, Rule):
        assert rule.num_keys == last


def test_packed_positions_are_documents() -> None:
    """position_ids that start anew part a row, whatever they start with."""
    ids = M.find_packed_sequence_indices(POSITIONS)
    assert ids is not None
    for base in (M.causal_mask_function, M.sliding_window_causal_mask_function(4)):
        inner = M.remap_positions_for_packed_sequence(base, POSITIONS.expand(2, -1))
        packed = M.packed_sequence_mask_function(ids.expand(2, -1))
        rule = check(M.and_masks(inner, packed))
        assert P.Documents((5, 9, 9)) in rule.patterns[0].parts
    chunks = M.chunked_causal_mask_function(4, torch.tensor([0, 0]))
    inner = M.remap_positions_for_packed_sequence(chunks, POSITIONS.expand(2, -1))
    rule = check(M.and_masks(inner, packed))
    assert P.Documents((4, 1, 1, 4, 4, 4, 4, 1)) in rule.patterns[0].parts


def test_rows_of_one_pattern_are_one_call() -> None:
    """Rows that are packed alike share a pattern, others have each their own."""
    same = M.and_masks(M.causal_mask_function, M.packed_sequence_mask_function(IDS[:1]))
    other = M.and_masks(M.causal_mask_function, M.packed_sequence_mask_function(IDS))
    assert len(check(same, batch_size=1).patterns) == 1
    assert len(check(other).patterns) == 2


def test_numbers_that_come_again_are_no_documents() -> None:
    """Documents are stretches: equal numbers in two places read each other, and are left alone."""
    again = torch.tensor([[0] * 7 + [1] * 8 + [0] * 8] * 2)
    inner = M.packed_sequence_mask_function(again)
    check(M.and_masks(M.causal_mask_function, inner), readable=False)
    check(M.or_masks(M.causal_mask_function, M.blockwise_overlay(again)), readable=False)
    check(M.or_masks(M.causal_mask_function, M.blockwise_overlay(again - 1)))


def test_a_mask_answers_as_a_tensor() -> None:
    """Models look at shapes, cast, slice and add: each sees the additive mask."""
    options: Any = {"batch_size": 2, "q_length": 5, "kv_length": 5, "dtype": torch.float64}
    mask = foveal_mask(**options)
    lowest = torch.finfo(torch.float64).min
    expected = torch.zeros(2, 1, 5, 5, dtype=torch.float64)
    expected = expected.masked_fill(torch.ones(5, 5).triu(1).bool(), lowest)
    assert (mask.ndim, mask.dtype, mask.size(-1)) == (4, torch.float64, 5)
    assert mask[:, :, :, :5] is mask
    assert mask.to(torch.float64) is mask
    assert mask.contiguous() is mask
    for found, wanted in [
        (mask[..., :3], expected[..., :3]),
        (mask[0], expected[0]),
        (mask.float(), expected.float()),
        (mask.to(torch.float32), expected.float()),
        (torch.ones(2, 4, 5, 5) + mask, 1 + expected),
        (mask.expand(2, 3, 5, 5), expected.expand(2, 3, 5, 5)),
        (mask.unsqueeze(1), expected.unsqueeze(1)),
    ]:
        assert type(found) is Tensor
        assert torch.equal(found, wanted.expand_as(found))
    assert mask.numpy().shape == (2, 1, 5, 5)
    assert torch.equal(torch.tensor(mask.tolist()).double() == 0, expected == 0)


WRITES: dict[str, Callable[[Tensor], Any]] = {
    "an item": lambda mask: mask.__setitem__((..., 2), -5.0),
    "a method": lambda mask: mask.masked_fill_(torch.eye(5).bool(), -5.0),
    "a view": lambda mask: mask[1].mul_(0.5),
    "an operator": lambda mask: mask.__iadd__(torch.ones(5, 5)),
    "out": lambda mask: torch.add(mask, 1.0, out=mask),
}


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", WRITES)
def test_a_mask_that_is_written_to_says_it(name: str, mode: Any) -> None:
    """What a model changes in a mask is what its layers read, and a clone stays as it was."""
    layer, options = nn.Module().eval(), {"batch_size": 2, "q_length": 5, "kv_length": 5}
    with mode():
        x = torch.randn(3, 2, 4, 5, 8)
        mask = foveal_mask(**options)
        twin, plain = mask.clone(), mask + 0.0
        WRITES[name](mask)
        expected = mask + 0.0
        assert not torch.equal(expected, plain)
        found = foveal_attention(layer, *x, mask)[0]
        wanted = nn.functional.scaled_dot_product_attention(*x, expected).transpose(1, 2)
        torch.testing.assert_close(found, wanted)
        assert twin.rule is not None
        assert torch.equal(twin + 0.0, plain)
        assert torch.equal(mask.clone(), expected)


def test_masks_without_numbers() -> None:
    """On the meta device, of fake tensors and within vmap nothing can be read; masks are plain."""
    options: Any = {"batch_size": 1, "q_length": 70, "kv_length": 70}
    for padded in (False, True):
        real = torch.ones(1, 70).bool() if padded else None
        there = None if real is None else real.to("meta")
        assert type(foveal_mask(**options, attention_mask=there, device="meta")) is Tensor
        with FakeTensorMode() as fake:
            there = None if real is None else fake.from_tensor(real)
            assert foveal_mask(**options, attention_mask=there).shape == (1, 1, 70, 70)

    def row(real: Tensor) -> Tensor:
        return foveal_mask(**options, attention_mask=real[None])

    each = PADDING[:, :35].repeat(1, 2)
    found = torch.func.vmap(row)(each)
    expected = [foveal_mask(**options, attention_mask=one[None]) for one in each]
    assert torch.equal(found, torch.stack([one + 0.0 for one in expected]))
