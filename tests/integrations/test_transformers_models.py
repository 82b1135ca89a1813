"""foveal's causal language models inside transformers, against themselves and plain loops."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("transformers")

import transformers
from causal_models import FEW, MODELS, every, few, make, padded, prompt
from transformers.utils import logging

from foveal import models as M
from foveal.integrations.transformers import ByteTokenizer, FovealCache, FovealForCausalLM

logging.disable_progress_bar()
pytestmark = pytest.mark.usefixtures("strangers")

# -- generate -------------------------------------------------------------------------------


@every
def test_greedy(name: str) -> None:
    """generate of transformers writes what our own writes, token for token."""
    model, wrapped = make(name)
    tokens, n = prompt(2), 9 if name in FEW else 4
    want = model.generate(tokens, n, temperature=0)
    for use_cache in (True, False):
        got = wrapped.generate(tokens, max_new_tokens=n, do_sample=False, use_cache=use_cache)
        assert torch.equal(got, want)


@pytest.mark.parametrize(
    ("name", "side"), [*((one, "left") for one in MODELS), *((one, "right") for one in FEW)]
)
def test_padding(name: str, side: str) -> None:
    """A row gives what it gives alone, wherever its padding stands and whatever is in it."""
    model, wrapped = make(name)
    package = name == "htransformer package"  # which takes no single token
    tokens, mask, rows = padded(side, 2 if package else 1)
    logits = wrapped(tokens, attention_mask=mask).logits
    for row, real in enumerate(mask.bool()):
        torch.testing.assert_close(logits[row, real], model(rows[row])[0], rtol=1e-4, atol=1e-5)
    want = torch.cat([model.generate(one, 4, temperature=0)[:, -4:] for one in rows])
    given = {"attention_mask": mask, "max_new_tokens": 4, "do_sample": False}
    for options in ({}, {"use_cache": False}, {"prefill_chunk_size": 8 if package else 3}):
        assert torch.equal(wrapped.generate(tokens, **given, **options)[:, 8:], want), options


@pytest.mark.parametrize("name", [*FEW, "pyramid", "htransformer package"])
def test_beams(name: str) -> None:
    """Beams over the cache are those without one, padding included."""
    _, wrapped = make(name)
    tokens, mask, _ = padded("left", 2)
    options = {"attention_mask": mask, "num_beams": 2, "max_new_tokens": 4, "do_sample": False}
    with_cache = wrapped.generate(tokens, **options)
    assert torch.equal(with_cache, wrapped.generate(tokens, use_cache=False, **options))


def test_sampling_stopping_and_streams() -> None:
    """Draws are repeatable and stop; num_return_sequences, penalties and a streamer work."""
    _, wrapped = make()
    options = {"do_sample": True, "top_k": 5, "max_new_tokens": 8}
    torch.manual_seed(3)
    first = wrapped.generate(prompt(), **options, num_return_sequences=2, repetition_penalty=1.3)
    torch.manual_seed(3)
    again = wrapped.generate(prompt(), **options, num_return_sequences=2, repetition_penalty=1.3)
    assert torch.equal(first, again)
    assert first.shape == (6, 15)
    assert bool((first < 20).all())
    greedy = wrapped.generate(prompt(1), max_new_tokens=8, do_sample=False)[0, 7:]
    end = int(greedy[3])
    stopped = wrapped.generate(
        prompt(1), max_new_tokens=8, do_sample=False, eos_token_id=end, pad_token_id=0
    )[0, 7:]
    assert torch.equal(stopped, greedy[: greedy.tolist().index(end) + 1])


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"use_cache": False}])
def test_strings_that_stop(options: dict[str, Any]) -> None:
    """Generation ends after a string, which asks for the tokenizer; nothing else is told of it."""
    tokenizer = ByteTokenizer()
    wrapped = FovealForCausalLM.from_foveal(M.TransformerLM(dim=8, depth=1, heads=2)).eval()
    text, start = b"and so on END or not", tokenizer("it was", return_tensors="pt")

    def dictated(tokens: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        forced = torch.full_like(scores, -1e9)
        forced[:, text[tokens.shape[1] - 6]] = 0.0
        return forced

    options = {"max_new_tokens": 20, "do_sample": False, "logits_processor": [dictated]} | options
    out = wrapped.generate(**start, **options, tokenizer=tokenizer, stop_strings=["END", "zzz"])
    assert tokenizer.decode(out[0]) == "it wasand so on END"
    again = wrapped.generate(**start, **options, tokenizer=tokenizer)
    assert again.shape == (1, 26)


def test_cache_goes_on() -> None:
    """A cache that was given back, copied or chosen from goes on as the whole sequence does."""
    model, wrapped = make("htransformer")
    tokens = prompt(2, 5)
    out = wrapped(tokens, use_cache=True)
    torch.testing.assert_close(out.logits, model(tokens), rtol=1e-4, atol=1e-5)
    twin = copy.deepcopy(out.cache)
    twin.batch_repeat_interleave(2)
    twin.batch_select_indices(torch.tensor([3, 0]))
    more = torch.tensor([[4, 9, 2], [7, 7, 1]])
    for cache, rows in ((out.cache, [0, 1]), (twin, [1, 0])):
        whole = model(torch.cat((tokens[rows], more), 1))[:, 5:]
        logits = wrapped(more[:, :2], past_key_values=cache).logits
        torch.testing.assert_close(logits, whole[:, :2], rtol=1e-4, atol=1e-5)
        last = wrapped(more[:, 2:], cache=cache, logits_to_keep=1).logits
        torch.testing.assert_close(last, whole[:, 2:], rtol=1e-4, atol=1e-5)
    assert twin.get_seq_length() == 8
    assert twin.batch_size == 2
    assert twin.num_bytes > 0
    given = FovealCache()
    kept = {"cache": given, "return_dict_in_generate": True, "do_sample": False}
    first = wrapped.generate(tokens, max_new_tokens=3, **kept).sequences
    second = wrapped.generate(first, max_new_tokens=3, **kept).sequences
    assert torch.equal(second, model.generate(tokens, 6, temperature=0))
    given.reset()
    assert given.get_seq_length() == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 60}, "max_seq_len=64"),
        ({"cache_implementation": "static"}, "leave it out"),
        ({"prompt_lookup_num_tokens": 2}, "assisted generation is not supported"),
        ({"cache": transformers.DynamicCache()}, "must be a FovealCache"),
        ({"output_attentions": True, "return_dict_in_generate": True}, "logits only"),
        ({"token_type_ids": torch.zeros(3, 7)}, "token_type_ids"),
        ({"input_ids": torch.full((3, 7), 20)}, "tokens from 0 to 19, got values from 20"),
    ],
)
def test_generate_refuses(options: dict[str, Any], message: str) -> None:
    """What cannot be right is refused in words."""
    given = {"input_ids": prompt(), "max_new_tokens": 2, "do_sample": False, **options}
    with pytest.raises(ValueError, match=message):
        make()[1].generate(**given)


# -- forward --------------------------------------------------------------------------------


def test_loss() -> None:
    """The loss of the next token, -100 ignored, divided as it is asked for."""
    model, wrapped = make()
    tokens = prompt()
    labels = tokens.masked_fill(tokens == tokens[0, 2], -100)
    logits = model(tokens)[:, :-1].flatten(0, 1)
    want = nn.functional.cross_entropy(logits, labels[:, 1:].flatten())
    torch.testing.assert_close(wrapped(tokens, labels=labels).loss, want)
    total = nn.functional.cross_entropy(logits, labels[:, 1:].flatten(), reduction="sum")
    got = wrapped(tokens, labels=labels, num_items_in_batch=torch.tensor(5)).loss
    torch.testing.assert_close(got, total / 5)
    assert bool(wrapped(tokens, labels=torch.full_like(tokens, -100)).loss.isnan())
    assert bool(wrapped(tokens[:1, :1], labels=tokens[:1, :1]).loss.isnan())
    assert isinstance(wrapped(tokens, labels=labels, return_dict=False), tuple)


@few
def test_loss_of_padded_rows(name: str) -> None:
    """Loss and gradients of padded rows are those of the rows alone."""
    model, wrapped = make(name)
    for side in ("left", "right"):
        tokens, mask, rows = padded(side)
        losses = [
            nn.functional.cross_entropy(model(one)[0, :-1], one[0, 1:], reduction="sum")
            for one in rows
        ]
        want = torch.stack(losses).sum() / 11
        labels = tokens.masked_fill(mask == 0, -100)
        got = wrapped(tokens, attention_mask=mask, labels=labels).loss
        torch.testing.assert_close(got, want)
        weights = [one for one in model.parameters() if one.requires_grad]
        grads = zip(
            torch.autograd.grad(got, weights, allow_unused=True),
            torch.autograd.grad(want, weights, allow_unused=True),
            strict=True,
        )
        for one, other in grads:
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_positions() -> None:
    """Positions that only repeat the mask are taken; documents are packed; others are refused."""
    model, wrapped = make()
    tokens, mask, _ = padded("left")
    counted = (mask.cumsum(1) - 1).clamp(min=0)
    want = wrapped(tokens, attention_mask=mask).logits
    assert torch.equal(wrapped(tokens, attention_mask=mask, position_ids=counted).logits, want)
    tokens = prompt(2, 7)
    plain = torch.arange(7)[None]
    assert torch.equal(wrapped(tokens, position_ids=plain).logits, model(tokens))
    packed = torch.tensor([[0, 1, 2, 0, 1, 0, 1], [0, 1, 2, 3, 4, 5, 6]])
    logits = wrapped(tokens, position_ids=packed).logits
    torch.testing.assert_close(logits[:1, 3:5], model(tokens[:1, 3:5]), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="without padding and without a cache"):
        wrapped(tokens, position_ids=packed, use_cache=True)
    with pytest.raises(ValueError, match="count the real tokens"):
        make("hourglass")[1](tokens, position_ids=packed)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_ids": None, "inputs_embeds": torch.zeros(3, 7, 8)}, "no inputs_embeds"),
        ({"input_ids": None}, "input_ids must be given"),
        ({"attention_mask": torch.ones(3, 1, 7, 7)}, "attention_mask must be"),
        ({"attention_mask": torch.ones(3, 5)}, "attention_mask must be"),
        ({"output_hidden_states": True}, "logits only"),
        ({"cache": transformers.DynamicCache()}, "must be a FovealCache"),
        ({"labels": prompt(), "logits_to_keep": 2}, "labels must have the shape"),
        ({"is_causal": False}, "cannot read later tokens"),
        ({"position_ids": torch.zeros(2, 2)}, "position_ids must be of the shape"),
    ],
)
def test_forward_refuses(options: dict[str, Any], message: str) -> None:
    """What a foveal model has not is named."""
    with pytest.raises(ValueError, match=message):
        make()[1](**{"input_ids": prompt(), **options})


def test_forward_refuses_unknown_names() -> None:
    """A word that nobody reads is not passed over."""
    with pytest.raises(TypeError, match="no keyword 'atention_mask'; did you mean 'att"):
        make()[1](prompt(), atention_mask=torch.ones(3, 7))


def test_cache_in_training() -> None:
    """While training there are gradients and no cache, whatever is asked for."""
    _, wrapped = make()
    out = wrapped.train()(prompt(), use_cache=True, labels=prompt())
    assert out.cache is None
    out.loss.backward()
    assert wrapped.get_input_embeddings().weight.grad is not None
