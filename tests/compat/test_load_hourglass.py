"""Checkpoints of hourglass-transformer-pytorch: its logits with faults, corrected ones without."""

import math

import pytest
import torch

from foveal.interop import load_upstream
from foveal.testing import assert_causal

SHAPES = [
    {"depth": (1, 2, 1), "shorten_factor": 3},
    {"depth": (2, 1, 0), "shorten_factor": 4, "updown_sample_type": "linear"},
    {"depth": (1, 1, 1), "shorten_factor": 2, "attn_resampling": False},
    {
        "depth": (1, (1, 2, 1), 1),
        "shorten_factor": (2, 3),
        "attn_resampling": False,
        "updown_sample_type": "linear",
    },
    {"depth": (1, (0, (1, 1, 1), 1), 1), "shorten_factor": 2},
    {"depth": (1, 1, 1), "shorten_factor": 3, "causal": False},
    {"depth": 2},
]


def pair(peer, options, compat="package"):
    """The package's model, repaired so that it takes any length, and ours from its weights."""
    module = peer("hourglass_transformer_pytorch.hourglass_transformer_pytorch")
    module.math = math
    torch.manual_seed(0)
    theirs = module.HourglassTransformerLM(
        num_tokens=20, dim=16, max_seq_len=32, heads=2, dim_head=8, **options
    ).eval()
    config = {k: v for k, v in options.items() if k in ("causal", "shorten_factor")}
    ours = load_upstream(
        theirs.state_dict(), config={"heads": 2, **config}, **({} if compat else {"compat": None})
    )
    return theirs, ours


@pytest.mark.parametrize("options", SHAPES, ids=str)
@torch.no_grad()
def test_the_packages_logits(peer, options):
    """Naive, linear, with and without attention, nested: the same numbers, also under masks."""
    theirs, ours = pair(peer, options)
    for length in (1, 12, 24, 29):
        tokens = torch.randint(0, 20, (2, length))
        torch.testing.assert_close(ours(tokens), theirs(tokens), rtol=0, atol=1e-5)
        for mask in (torch.arange(length) < length - 5, torch.arange(length) >= 5):
            mask = mask[None].expand(2, -1)
            expected = theirs(tokens, mask=mask)
            torch.testing.assert_close(ours(tokens, mask), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("options", [s for s in SHAPES if s.get("causal", True)], ids=str)
@torch.no_grad()
def test_imported_models_decode(peer, options):
    """Caches continue exactly, with the package's mathematics and the corrected one."""
    for compat in ("package", None):
        _, ours = pair(peer, options, compat)
        ours.double()
        tokens = torch.randint(0, 20, (2, 31))
        full = ours(tokens)
        for start in (1, 5, 12):
            logits, cache = ours.prefill(tokens[:, :start])
            for i in range(start, 31):
                torch.testing.assert_close(logits, full[:, i - 1], rtol=0, atol=1e-10)
                logits, cache = ours.step(tokens[:, i], cache)
            torch.testing.assert_close(logits, full[:, -1], rtol=0, atol=1e-10)


@pytest.mark.parametrize("options", SHAPES, ids=str)
def test_corrected_mathematics(peer, options):
    """compat=None: masked tokens move nothing, every weight learns, and nothing leaks."""
    _, ours = pair(peer, options, None)
    ours.double().train()
    tokens = torch.randint(0, 20, (2, 29))
    ours(tokens).square().sum().backward()
    names = [n for n, p in ours.named_parameters() if p.grad is None or not p.grad.any()]
    assert not names
    mask = torch.arange(29)[None].expand(2, -1) >= 5
    other = torch.where(mask, tokens, torch.randint(0, 20, (2, 29)))
    ours.eval()
    with torch.no_grad():
        same = ours(tokens, mask)[:, 5:], ours(other, mask)[:, 5:]
    torch.testing.assert_close(*same, rtol=0, atol=1e-12)
    if options.get("causal", True):
        body = ours.transformer
        pad = torch.nn.Linear(8, 16, bias=False).double()
        assert_causal(lambda x: body(pad(x), mask[:1]), 29)


def test_what_the_weights_do_not_say(peer):
    """Without projections the factor has to be given; heads that do not fit are named."""
    theirs, ours = pair(peer, SHAPES[2])
    weights = theirs.state_dict()
    with pytest.raises(ValueError, match=r"config=dict\(shorten_factor"):
        load_upstream(weights, config={"heads": 2})
    with pytest.raises(ValueError, match="heads=3"):
        load_upstream(weights, config={"heads": 3, "shorten_factor": 2})
    with pytest.raises(ValueError, match=r"attn_resampling=True.*does not fit"):
        load_upstream(weights, config={"heads": 2, "shorten_factor": 2, "attn_resampling": True})
    assert ours.config["depth"] == (1, 1, 1)


def test_saved_imports_keep_their_mathematics(peer, tmp_path):
    """config.json remembers whose mathematics the weights belong to."""
    _, ours = pair(peer, SHAPES[0])
    ours.save_pretrained(tmp_path)
    again = type(ours).from_pretrained(tmp_path)
    tokens = torch.randint(0, 20, (1, 20))
    assert torch.equal(again(tokens), ours(tokens))
    assert again.config == ours.config
