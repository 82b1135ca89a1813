"""attn_implementation="foveal" gives what "eager" gives, in every model, cache and padding."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

T = pytest.importorskip("transformers")

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
    assert calls == ["_by_rule"] * 2
