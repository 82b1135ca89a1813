"""Packed rows: a document gets what it gets alone, in the model and through the byte recipe."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from foveal import patterns as P
from foveal.data.corpus import Corpus, Span
from foveal.data.text import IGNORED, TextWindows, scoring_windows
from foveal.models import TransformerLM
from foveal.recipes.bytes.kind import KIND, score_windows
from foveal.recipes.config import load_recipe
from foveal.testing import assert_close

LENGTHS = ((20, 1, 19), (40,), (13, 27))


def model(**options):
    torch.manual_seed(1)
    sizes = {"dim": 32, "depth": 2, "heads": 4, "dim_head": 8, "max_seq_len": 64}
    return TransformerLM(**{"pattern": P.Full(causal=True), **sizes, **options}).eval()


def places():
    return torch.stack([torch.cat([torch.arange(n) for n in row]) for row in LENGTHS])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pattern": [P.SlidingWindow(7), P.Blocks(8, causal=True, lookback=1)], "kv_heads": 2},
        {"pattern": P.Strided(5), "softcap": 5.0, "sinks": True},
        {"positions": "alibi"},
        {"positions": "t5"},
    ],
    ids=str,
)
def test_logits_as_alone(options):
    """Patterns and positions restart: logits and gradients are those of each document alone."""
    lm = model(**options).double()
    tokens = torch.randint(0, 256, (3, 40))
    packed = lm(tokens, position_ids=places())
    alone = [
        torch.cat([lm(part[None])[0] for part in row.split(lengths)])
        for row, lengths in zip(tokens, LENGTHS, strict=True)
    ]
    assert_close(packed, torch.stack(alone))
    weights = list(lm.parameters())
    ones = torch.autograd.grad(packed.square().sum(), weights)
    others = torch.autograd.grad(torch.stack(alone).square().sum(), weights)
    for one, other in zip(ones, others, strict=True):
        assert_close(one, other)


def test_other_documents_change_no_bit():
    """What else is packed changes nothing."""
    lm = model(pattern=P.SlidingWindow(7))
    tokens = torch.randint(0, 256, (3, 40))
    before = lm(tokens, position_ids=places())
    tokens[0, 20:] = torch.randint(0, 256, (20,))
    tokens[1:] = torch.randint(0, 256, (2, 40))
    assert torch.equal(lm(tokens, position_ids=places())[0, :20], before[0, :20])


@pytest.mark.parametrize(
    ("position_ids", "says"),
    [
        ([[0, 1, 2, 4]], "count 0, 1, 2"),
        ([[1, 2, 3, 4]], "count 0, 1, 2"),
        ([[0, 1, 0, 0]], None),
        ([[0, 1], [2, 3]], "shape of tokens"),
        ([[0.0, 1.0, 2.0, 3.0]], "of an int type"),
    ],
)
def test_positions_are_checked(position_ids, says):
    """Positions that do not restart in each document are told by name."""
    tokens, given = torch.zeros(1, 4, dtype=torch.long), torch.tensor(position_ids)
    if says is None:
        assert model()(tokens, position_ids=given).shape == (1, 4, 256)
        return
    with pytest.raises(ValueError, match=says):
        model()(tokens, position_ids=given)


def corpus(folder, *sizes) -> Corpus:
    spans = []
    for number, size in enumerate(sizes):
        path = folder / f"{number}.txt"
        path.write_bytes(bytes(np.random.default_rng(number).integers(0, 256, size).tolist()))
        spans.append(Span(path, 0, size))
    return Corpus("packed", spans)


def test_windows_know_their_files(tmp_path):
    """Positions restart at each file, and no loss asks for the first byte of one."""
    found = corpus(tmp_path, 10, 3, 30, 21)
    assert found.places(8, 8).tolist() == [0, 1, 0, 1, 2, 0, 1, 2]
    windows = TextWindows(found, 16, pack=True)

    class Draw:
        passes, seed = torch.zeros(2, dtype=torch.long), 0
        indices = torch.arange(2)

    inputs, targets, at = windows.draw(Draw())
    plain = TextWindows(found, 16).draw(Draw())
    assert torch.equal(inputs, plain[0])
    ignored = targets == IGNORED
    assert torch.equal(ignored[:, :-1], at[:, 1:] == 0)
    assert torch.equal(targets[~ignored], plain[1][~ignored])
    assert bool(ignored.any())


def test_scores_of_packed_windows(tmp_path):
    """Every byte but the first is scored once, in windows of which the last is short."""
    found, lm = corpus(tmp_path, 10, 3, 30, 20), model()
    bits, count = score_windows(lm, found, 16, pack=True)["bits_per_byte"]
    assert count == len(found) - 1
    total = 0.0
    for inputs, targets, at in scoring_windows(found, 16, pack=True):
        logits = lm(inputs[None], position_ids=at[None])[0].detach()
        total += float(torch.nn.functional.cross_entropy(logits, targets, reduction="sum"))
    assert bits == pytest.approx(total / np.log(2), rel=1e-4)


def test_models_that_cannot_pack_are_refused():
    """The recipe says which model data.pack needs, and takes one that can."""
    for name, fits in (("bytes-hourglass", False), ("bytes-transformer", True)):
        config = load_recipe(name)
        config = replace(config, data=replace(config.data, pack=True))
        if fits:
            assert KIND.build(config).packs
            continue
        with pytest.raises(ValueError, match="needs a model that takes documents"):
            KIND.build(config)


def test_a_step_of_the_recipe_learns_from_packed_rows(tmp_path):
    """The loss of the task is that of the documents."""
    found, lm = corpus(tmp_path, 30, 7, 40), model()
    windows = TextWindows(found, 16, pack=True)
    inputs, targets, at = (torch.stack(part) for part in zip(*rows(windows), strict=True))
    task = SimpleNamespace(config=load_recipe("bytes-transformer"), parts=None)
    loss = KIND.loss(task, lm, (inputs, targets, at))
    total, count = 0.0, 0
    for row, wanted, place in zip(inputs, targets, at, strict=True):
        lengths = torch.cat([(place == 0).nonzero()[:, 0], torch.tensor([16])]).diff().tolist()
        for part, own in zip(row.split(lengths), wanted.split(lengths), strict=True):
            logits = lm(part[None])[0]
            total = total + torch.nn.functional.cross_entropy(logits, own, reduction="sum")
            count += int((own != IGNORED).sum())
    assert_close(loss, total / count)


def rows(windows):
    """A few windows: inputs, targets and positions of each."""

    class Draw:
        passes, seed, indices = torch.zeros(3, dtype=torch.long), 0, torch.arange(3)

    return list(zip(*windows.draw(Draw()), strict=True))
