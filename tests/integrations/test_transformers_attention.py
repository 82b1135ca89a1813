"""attn_implementation="foveal" gives what "eager" gives, in every model, cache and padding."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

T = pytest.importorskip("transformers")

import foveal.integrations.transformers as plug  # noqa: E402
from foveal.integrations.transformers import attention  # noqa: E402

SMALL = {
    "vocab_size": 61,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
TEXT = {name: SMALL[name] for name in list(SMALL)[:5]} | {
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LAYERS = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 7}
CHUNKS = {"layer_types": ["chunked_attention", "full_attention"], "attention_chunk_size": 8}
GEMMA = {"query_pre_attn_scalar": 8} | LAYERS
EXPERTS = {"num_local_experts": 3, "num_experts_per_tok": 2}
ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}
IMAGE = {"image_size": 24, "patch_size": 6} | {name: SMALL[name] for name in list(SMALL)[1:5]}

CAUSAL: dict[str, tuple[str, dict[str, Any]]] = {
    "Gemma3ForCausalLM": ("Gemma3TextConfig", SMALL | GEMMA),
    "MistralForCausalLM": ("MistralConfig", SMALL | {"sliding_window": 7}),
    "Qwen3ForCausalLM": ("Qwen3Config", SMALL),
    "GptOssForCausalLM": ("GptOssConfig", SMALL | LAYERS | EXPERTS | ROPE),
    "Gemma2ForCausalLM": ("Gemma2Config", SMALL | GEMMA | {"attn_logit_softcapping": 2.0}),
    "Llama4ForCausalLM": (
        "Llama4TextConfig",
        SMALL | CHUNKS | {"intermediate_size_mlp": 24, "num_local_experts": 2},
    ),
}
ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ModernBertModel": (
        "ModernBertConfig",
        TEXT | {"local_attention": 10, "cls_token_id": 1, "sep_token_id": 2},
    ),
    "Gemma3TextModel": (
        "Gemma3TextConfig",
        SMALL | GEMMA | {"use_bidirectional_attention": True},
    ),
    "BertModel": ("BertConfig", TEXT),
}
VISION = {"SiglipVisionModel": "SiglipVisionConfig", "ViTModel": "ViTConfig"}
KINDS = {**CAUSAL, **ENCODERS, **{name: (one, IMAGE) for name, one in VISION.items()}}
LEFT = (torch.arange(19)[None] >= torch.tensor([[6], [0]])).long()
RIGHT = (torch.arange(19)[None] < torch.tensor([[19], [12]])).long()
TOKENS = torch.randint(3, 61, (2, 19), generator=torch.Generator().manual_seed(0))


@cache
def pair(name: str) -> tuple[Any, Any]:
    """(eager, foveal): a model twice, with the same random weights."""
    config, sizes = KINDS[name]
    torch.manual_seed(1)
    eager = getattr(T, name)(getattr(T, config)(**sizes)).eval()
    for x in eager.parameters():
        nn.init.normal_(x, std=0.3)  # those of an initialization make attention uniform
    ours = copy.deepcopy(eager)
    eager.set_attn_implementation("eager")
    ours.set_attn_implementation("foveal")
    return eager, ours


def run(model: Any, real: Tensor | None = None, **inputs: Any) -> tuple[Tensor, Tensor]:
    """The output where tokens are real, and the gradient of all weights."""
    model.zero_grad()
    out = model(**inputs)[0]
    if real is not None:
        out = out * real[..., None]
    (out.sin() / out[0].numel()).sum().backward()
    grads = [x.grad.flatten() for x in model.parameters() if x.grad is not None]
    return out.detach(), torch.cat(grads)


def assert_same(pair: tuple[Any, Any], real: Tensor | None = None, **inputs: Any) -> None:
    """Output and gradients of the two."""
    found, expected = run(pair[1], real, **inputs), run(pair[0], real, **inputs)
    for name, one, other in zip(("output", "gradient"), found, expected, strict=True):
        assert (one - other).abs().max() <= 1e-4 * other.abs().max().clamp(min=1e-3), name


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ways that calls take: `_by_rule`, `_by_selection` or `_by_mask`."""
    made: list[str] = []

    def noted(name: str) -> Callable[..., Any]:
        inner = getattr(attention, name)
        return lambda *args: made.append(name) or inner(*args)

    for name in ("_by_rule", "_by_selection", "_by_mask"):
        monkeypatch.setattr(attention, name, noted(name))
    monkeypatch.setattr(attention, "SHORT", 0)  # so that they are those of long rows
    return made


@pytest.mark.parametrize("padding", ["none", "left", "right"])
@pytest.mark.parametrize("name", [*CAUSAL, *ENCODERS])
def test_text_models_equal_eager(name: str, padding: str, calls: list[str]) -> None:
    """Outputs and gradients, for padding on either side; no mask of all pairs is read."""
    mask = {"none": None, "left": LEFT, "right": RIGHT}[padding]
    assert_same(pair(name), mask, input_ids=TOKENS, attention_mask=mask)
    assert set(calls) == {"_by_rule"}


@pytest.mark.parametrize("name", VISION)
def test_vision_encoders_equal_eager(name: str, calls: list[str]) -> None:
    """Models that make no mask."""
    assert_same(
        pair(name), pixel_values=torch.linspace(-1, 1, 2 * 3 * 24 * 24).sin().view(2, 3, 24, 24)
    )
    assert "_by_mask" not in calls


CACHES = {
    "dynamic": {},
    "static": {"cache_implementation": "static"},
    "beams": {"num_beams": 2},
    "none": {"use_cache": False},
}


@pytest.mark.parametrize("kind", CACHES)
@pytest.mark.parametrize("name", CAUSAL)
def test_generation_equals_eager(name: str, kind: str) -> None:
    """Token for token, beyond windows and chunks, for a row that is padded on the left.

    Caches of sliding layers slide, dynamic ones and static ones (longer than what is written).
    """
    options = {"max_new_tokens": 9, "min_new_tokens": 9, "do_sample": False} | CACHES[kind]
    eager, ours = pair(name)
    inputs = {"inputs": TOKENS * LEFT, "attention_mask": LEFT}
    expected, found = (one.generate(**inputs, **options) for one in (eager, ours))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", ["Gemma3ForCausalLM", "GptOssForCausalLM", "Llama4ForCausalLM"])
def test_a_chat_goes_on(name: str, calls: list[str]) -> None:
    """Some more tokens after a cache, in either kind of cache, as in one pass."""
    eager, ours = pair(name)
    expected = eager(TOKENS, attention_mask=LEFT).logits * LEFT[..., None]
    for kind in (T.DynamicCache, T.StaticCache):
        sizes = {"max_cache_len": 30} if kind is T.StaticCache else {}
        cache, found = kind(config=ours.config, **sizes), []
        for first, last in ((0, 8), (8, 13), (13, 14), (14, 19)):
            mask = LEFT[:, :last]
            positions = torch.arange(first, last)[None]
            part = TOKENS[:, first:last]
            with torch.no_grad():
                out = ours(part, attention_mask=mask, position_ids=positions, cache=cache)
            found.append(out.logits)
        error = (torch.cat(found, 1) * LEFT[..., None] - expected).abs().max()
        assert error <= 1e-4 * expected.abs().max()
    chunks = {"_by_mask"} if "Llama4" in name else set()  # a step of which is computed densely
    assert set(calls) == {"_by_rule", "_by_selection"} | chunks


def test_drafts_are_verified_in_one_pass() -> None:
    """Some queries at the end of many keys: prompt lookup gives what greedy decoding gives."""
    eager, ours = pair("Gemma3ForCausalLM")
    tokens = TOKENS[:1, :7].repeat(1, 3)
    options = {"max_new_tokens": 9, "do_sample": False, "attention_mask": torch.ones_like(tokens)}
    found = ours.generate(tokens, prompt_lookup_num_tokens=3, **options)
    assert torch.equal(found, eager.generate(tokens, **options))


@pytest.mark.parametrize("name", ["Gemma3ForCausalLM", "MistralForCausalLM", "Llama4ForCausalLM"])
def test_packed_documents_equal_separate_rows(name: str, calls: list[str]) -> None:
    """position_ids that start anew keep documents apart, in rows that are packed differently."""
    _, ours = pair(name)
    lengths = ((5, 11, 3), (12, 7))
    places = torch.tensor([[i for n in row for i in range(n)] for row in lengths])
    assert_same(pair(name), input_ids=TOKENS, position_ids=places, use_cache=False)
    packed = ours(TOKENS, position_ids=places, use_cache=False).logits
    assert set(calls) == {"_by_rule"}
    for row, own in enumerate(lengths):
        for part, out in zip(TOKENS[row].split(own), packed[row].split(own), strict=True):
            alone = ours(part[None], use_cache=False).logits[0]
            assert (out - alone).abs().max() <= 1e-4 * alone.abs().max()


SEQUENCES: dict[str, tuple[str, dict[str, Any]]] = {
    "T5ForConditionalGeneration": (
        "T5Config",
        {"vocab_size": 61, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 4}
        | {"dropout_rate": 0.0, "decoder_start_token_id": 0},
    ),
    "BartForConditionalGeneration": (
        "BartConfig",
        {"vocab_size": 61, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2}
        | {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "dropout": 0.0}
        | {"encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "decoder_start_token_id": 2}
        | {"pad_token_id": 0, "forced_eos_token_id": None, "max_position_embeddings": 64},
    ),
}
KINDS |= SEQUENCES


@pytest.mark.parametrize("name", SEQUENCES)
def test_cross_attention_and_position_biases(name: str) -> None:
    """Encoder and decoder of different lengths, padded; T5's bias has its gradient; generate."""
    inputs = {"input_ids": TOKENS, "attention_mask": RIGHT}
    assert_same(pair(name), **inputs, decoder_input_ids=TOKENS[:, :7])
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "num_beams": 2}
    expected, found = (one.generate(**inputs, **options) for one in pair(name))
    assert torch.equal(found, expected)


# -- training -----------------------------------------------------------------------------------


def test_trainer_has_the_same_losses(tmp_path: Path) -> None:
    """20 steps of the Trainer on rows that are padded on the right, to 1e-4 of eager.

    With and without activation checkpointing.
    """
    if T.utils.is_accelerate_available() is False:
        pytest.skip("the Trainer needs accelerate")
    labels = TOKENS.masked_fill(RIGHT == 0, -100)
    rows = {"input_ids": TOKENS, "attention_mask": RIGHT, "labels": labels}
    data = [{name: x[i % 2] for name, x in rows.items()} for i in range(80)]
    losses = []
    eager, ours = pair("Gemma3ForCausalLM")
    for model, checkpointing in ((eager, False), (ours, False), (ours, True)):
        model = copy.deepcopy(model)
        options = T.TrainingArguments(
            output_dir=str(tmp_path),
            max_steps=20,
            per_device_train_batch_size=2,
            learning_rate=1e-3,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            activation_checkpointing=checkpointing,
        )
        trainer = T.Trainer(model=model, args=options, train_dataset=data)
        trainer.train()
        losses.append([one["loss"] for one in trainer.state.log_history if "loss" in one])
    assert [len(one) for one in losses] == [20, 20, 20]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert losses[2] == pytest.approx(losses[0], rel=1e-4)
    assert losses[0][0] != losses[0][-1]


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_of_either_kind(
    reentrant: bool, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients are those of eager, and no mask of all pairs is made on the way."""

    def refuse(mask: Tensor) -> Tensor:
        raise AssertionError("the mask was written out")

    eager, ours = (copy.deepcopy(one).train() for one in pair("Gemma3ForCausalLM"))
    options = {"use_reentrant": reentrant}
    ours.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
    ours.enable_input_require_grads()
    monkeypatch.setattr(plug.masks.PatternMask, "written_out", refuse)
    assert_same((eager, ours), LEFT, input_ids=TOKENS, attention_mask=LEFT, use_cache=False)
    assert set(calls) == {"_by_rule"}


def test_dropout_of_weights_is_that_of_training() -> None:
    """Weights are dropped while a model trains, and only then; their mean is what it was."""
    config, sizes = KINDS["Qwen3ForCausalLM"]
    model = T.Qwen3ForCausalLM(getattr(T, config)(**sizes, attention_dropout=0.4))
    model.set_attn_implementation("foveal")
    evaluated = model.eval()(TOKENS).logits
    assert torch.equal(model(TOKENS).logits, evaluated)
    model.train()
    torch.manual_seed(0)
    one = model(TOKENS).logits
    assert not torch.allclose(one, evaluated)
    torch.manual_seed(0)
    assert torch.equal(model(TOKENS).logits, one)


# -- what is out of the ordinary ------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", ["Gemma2ForCausalLM", "Qwen3ForCausalLM"])
def test_other_dtypes(name: str, dtype: torch.dtype) -> None:
    """A pass and a decoding step in half precision, to its rounding of eager in float32."""
    eager, ours = pair(name)
    mine = copy.deepcopy(ours).to(dtype)
    expected = eager(TOKENS, attention_mask=LEFT).logits
    with torch.no_grad():
        out = mine(TOKENS[:, :-1], attention_mask=LEFT[:, :-1], use_cache=True)
        last = mine(TOKENS[:, -1:], attention_mask=LEFT, cache=out.cache).logits
    found = torch.cat([out.logits, last], 1)
    assert found.dtype == dtype
    error = ((found - expected) * LEFT[..., None]).abs().mean()
    assert error <= (1e-5 if dtype == torch.float64 else 0.06) * expected.abs().mean()


@pytest.mark.parametrize("name", ["Gemma3ForCausalLM", "GptOssForCausalLM", "ModernBertModel"])
def test_rows_of_padding_and_rows_of_one_token(name: str) -> None:
    """A row without tokens makes no NaN and no difference to others; one token reads itself."""
    eager, ours = pair(name)
    empty = LEFT.clone()
    empty[1] = 0
    assert_same(
        (eager, ours), LEFT * torch.tensor([[1], [0]]), input_ids=TOKENS, attention_mask=empty
    )
    assert ours(TOKENS, attention_mask=empty)[0].isfinite().all()
    assert_same((eager, ours), input_ids=TOKENS[:1, :1])
    assert_same((eager, ours), input_ids=TOKENS[:1, :2], attention_mask=torch.ones(1, 2).long())


def test_masks_that_a_user_makes() -> None:
    """Four-dimensional masks, bool and added, are taken as they are."""
    eager, ours = pair("Qwen3ForCausalLM")
    allowed = torch.ones(19, 19).tril().bool()[None, None].repeat(2, 1, 1, 1)
    allowed[:, :, 5:, 2] = False
    added = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
    assert_same((eager, ours), input_ids=TOKENS, attention_mask=added)
    found = ours(TOKENS, attention_mask=allowed).logits
    torch.testing.assert_close(
        found, eager(TOKENS, attention_mask=added).logits, rtol=1e-4, atol=1e-4
    )


def test_images_within_text() -> None:
    """Tokens of an image read each other both ways (Gemma 3), in layers with windows too."""
    config, sizes = KINDS["Gemma3ForCausalLM"]
    text = getattr(T, config)(**sizes)
    spans = torch.tensor([[-1] * 3 + [0] * 9 + [-1] * 7, [-1] * 12 + [0] * 4 + [1] * 3])
    embeds = torch.zeros(2, 19, 16)
    for name in ("create_causal_mask", "create_sliding_window_causal_mask"):
        make = getattr(T.masking_utils, name)
        made = {}
        for kind in ("sdpa", "foveal"):
            text._attn_implementation = kind
            made[kind] = make(text, embeds, LEFT, None, block_sequence_ids=spans)
        x = torch.randn(3, 2, 4, 19, 8)
        layer = nn.Module().eval()
        found = attention.foveal_attention(layer, *x, made["foveal"])[0]
        expected = nn.functional.scaled_dot_product_attention(*x, made["sdpa"]).transpose(1, 2)
        assert made["foveal"].rule is not None
        torch.testing.assert_close(found * LEFT[..., None, None], expected * LEFT[..., None, None])


def test_what_it_cannot_do_is_said() -> None:
    """Weights, chosen keys, and causal queries without a mask are refused in words."""
    _, ours = pair("Qwen3ForCausalLM")
    with pytest.raises(ValueError, match=r"no weights to return.*set_attn_implementation"):
        ours(TOKENS, output_attentions=True)
    layer, x = nn.Module().eval(), torch.randn(3, 1, 2, 5, 8)
    for name in ("indices", "block_indices", "sinks"):
        with pytest.raises(ValueError, match=f"passes as {name}; use 'eager'"):
            attention.foveal_attention(layer, *x, None, **{name: torch.zeros(1)})
    with pytest.raises(ValueError, match=r"2 queries and 5 keys.*cannot know which"):
        attention.foveal_attention(layer, x[0][:, :, :2], x[1], x[2], None)
    with pytest.raises(
        ValueError, match=r"must broadcast to .*\(1, 2, 5, 5\), got \(1, 1, 5, 4\)"
    ):
        attention.foveal_attention(layer, *x, torch.zeros(1, 1, 5, 4))


def test_models_are_made_with_it() -> None:
    """At construction, by a config, and registered again."""
    config, sizes = KINDS["MistralForCausalLM"]
    plug.register()
    for model in (
        T.AutoModelForCausalLM.from_config(
            getattr(T, config)(**sizes), attn_implementation="foveal"
        ),
        T.MistralForCausalLM(getattr(T, config)(**sizes, attn_implementation="foveal")),
    ):
        assert model.config._attn_implementation == "foveal"
        assert model(TOKENS, attention_mask=RIGHT).logits.isfinite().all()


@pytest.mark.skipif("FOVEAL_LONG" not in os.environ, reason="16 s of tracing; FOVEAL_LONG=1")
def test_a_compiled_model_gives_the_same() -> None:
    """torch.compile takes the whole model as one graph, with masks written out."""
    image = torch.linspace(-1, 1, 2 * 3 * 24 * 24).sin().view(2, 3, 24, 24)
    _, seeing = pair("SiglipVisionModel")
    found = torch.compile(seeing, backend="eager", fullgraph=True)(image)[0]
    torch.testing.assert_close(found, seeing(image)[0], rtol=1e-4, atol=1e-4)
    eager, ours = pair("Gemma3ForCausalLM")
    compiled = torch.compile(ours, backend="eager", fullgraph=True)
    found = compiled(TOKENS, attention_mask=LEFT, use_cache=False).logits
    expected = eager(TOKENS, attention_mask=LEFT, use_cache=False).logits
    assert ((found - expected) * LEFT[..., None]).abs().max() <= 1e-4 * expected.abs().max()
