"""Causal models of foveal in files of transformers, and bytes as its tokens."""

import copy
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import foveal
from foveal import models as M
from foveal import patterns as P

pytest.importorskip("transformers")

import transformers
from causal_models import FEW, TEXT, make, prompt, same_weights
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

from foveal.integrations.transformers import ByteTokenizer, FovealConfig, FovealForCausalLM

logging.disable_progress_bar()
pytestmark = pytest.mark.usefixtures("strangers")


@pytest.mark.parametrize("name", [*FEW, "t5", "hourglass package", "strangers"])
def test_files_both_ways(name: str, tmp_path: Path) -> None:
    """Either package opens what the other wrote, weight for weight."""
    model, wrapped = make(name)
    wrapped.save_pretrained(tmp_path / "theirs")
    model.save_pretrained(tmp_path / "ours")
    for folder in ("theirs", "ours"):
        opened = AutoModelForCausalLM.from_pretrained(tmp_path / folder)
        assert type(opened) is FovealForCausalLM
        assert type(opened.model) is type(model)
        assert not opened.training
        same_weights(model, opened.model)
        same_weights(model, foveal.load_model(tmp_path / folder))
        assert opened.config.settings == model.settings
    opened.save_pretrained(tmp_path / "again")  # after the state of loading
    same_weights(model, foveal.load_model(tmp_path / "again"))


def test_files_of_before(tmp_path: Path) -> None:
    """A config.json from before it named a model type opens by the class."""
    model, _ = make()
    model.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    del content["model_type"]
    (tmp_path / "config.json").write_text(json.dumps(content))
    same_weights(model, FovealForCausalLM.from_pretrained(tmp_path).model)
    same_weights(model, foveal.load_model(tmp_path))


def test_loading_is_strict(tmp_path: Path) -> None:
    """A weight that is missing, left over or of another shape raises; none is drawn anew."""
    from safetensors.torch import load_file, save_file

    model, wrapped = make()
    wrapped.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    for change, message in (
        ({"to_logits.bias": None}, "to_logits.bias is missing"),
        ({"surplus": torch.ones(1)}, "surplus is not part of the model"),
        ({"transformer.layers.0.surplus": torch.ones(1)}, "is not part of the model"),
    ):
        changed = {k: v for k, v in {**weights, **change}.items() if v is not None}
        save_file(changed, path, {"format": "pt"})
        with pytest.raises(ValueError, match=message):
            AutoModelForCausalLM.from_pretrained(tmp_path)
    save_file(weights, path, {"format": "pt"})
    with pytest.raises((ValueError, RuntimeError), match="mismatch"):
        AutoModelForCausalLM.from_pretrained(tmp_path, vocab_size=30)
    other = AutoModelForCausalLM.from_pretrained(
        tmp_path, vocab_size=30, ignore_mismatched_sizes=True
    )
    assert other(prompt()).logits.shape == (3, 7, 30)
    assert bool(other(prompt()).logits.isfinite().all())
    kept = {k: v for k, v in model.state_dict().items() if 20 not in v.shape}
    assert all(torch.equal(other.model.state_dict()[name], kept[name]) for name in kept)


def test_weights_in_several_files(tmp_path: Path) -> None:
    """transformers opens what it has split; foveal says what it is."""
    _, wrapped = make()
    wrapped.save_pretrained(tmp_path, max_shard_size="2KB")
    opened = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(opened(prompt()).logits, wrapped(prompt()).logits)
    with pytest.raises(FileNotFoundError, match=r"in several files.*max_shard_size"):
        foveal.load_model(tmp_path)


def test_dtype_and_device(tmp_path: Path) -> None:
    """The dtype of the file, or another one; placed by a device map."""
    _, wrapped = make()
    wrapped.to(torch.float16).save_pretrained(tmp_path)
    assert AutoModelForCausalLM.from_pretrained(tmp_path).dtype == torch.float16
    opened = AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, device_map="cpu", low_cpu_mem_usage=True
    )
    assert {one.dtype for one in opened.parameters()} == {torch.float32}
    assert foveal.load_model(tmp_path).token_emb.weight.dtype == torch.float16
    assert AutoConfig.from_pretrained(tmp_path).dtype == torch.float16


def test_configuration(tmp_path: Path) -> None:
    """Names of transformers are read from the keywords; what is nonsense is refused."""
    config = FovealConfig(family="hourglass", config={**TEXT, "depth": (1, (2, 1, 2), 1)})
    assert (config.vocab_size, config.hidden_size, config.num_attention_heads) == (20, 8, 2)
    assert (config.max_position_embeddings, config.num_hidden_layers) == (64, 7)
    config.anything = [1, 2]
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert again.config == config.config
    assert again.anything == [1, 2]
    model = AutoModelForCausalLM.from_config(again)
    assert type(model.model) is M.HourglassTransformerLM
    fresh = M.HourglassTransformerLM(again.settings).token_emb.weight.std()
    torch.testing.assert_close(model.model.token_emb.weight.std(), fresh, rtol=0.5, atol=0.0)
    for options, message in (
        ({}, "family must name"),
        ({"family": "transformr"}, "unknown model family"),
        ({"family": "transformer", "config": {"dimm": 8}}, "dimm"),
        ({"family": "transformer", "dim": 8}, "go into config"),
        ({"family": "transformer", "config": 7}, r"must be keywords.*got config=7"),
        ({"family": "hourglass", "config": [1]}, "must be keywords"),
        ({"family": "htransformer", "config": "dim"}, "must be keywords"),
    ):
        with pytest.raises(ValueError, match=message):
            FovealConfig(**options)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    assert type(AutoConfig.from_pretrained(tmp_path)).__name__ == "BertConfig"


@pytest.mark.parametrize(
    "build",
    [
        lambda: M.HTransformer1D(**TEXT, depth=1, block_size=4),
        lambda: M.HourglassTransformerLM(**TEXT, depth=(1, 1, 1), causal=False),
        lambda: M.TransformerLM(**TEXT, depth=1, pattern=P.Full()),
        lambda: foveal.create_model("halonet_cifar"),
    ],
)
def test_only_causal_models(build: Any, tmp_path: Path) -> None:
    """Encoders and models of pictures are no causal language models."""
    model = build()
    for made in (
        lambda: FovealForCausalLM.from_foveal(model),
        lambda: AutoModelForCausalLM.from_config(FovealConfig.of(model)),
    ):
        with pytest.raises(ValueError, match="needs a causal language model"):
            made()


def test_copies() -> None:
    """Copies, pickles and torch.save keep a model and its results; from_foveal copies nothing."""
    model, wrapped = make("t5")
    assert wrapped.model is model
    want = wrapped(prompt()).logits
    buffer = io.BytesIO()
    torch.save(wrapped, buffer)
    buffer.seek(0)
    for twin in (copy.deepcopy(wrapped), torch.load(buffer, weights_only=False)):
        assert torch.equal(twin(prompt()).logits, want)
        assert len(list(twin.parameters())) == len(list(model.parameters()))
        twin.model.token_emb.weight.data.zero_()
    assert torch.equal(wrapped(prompt()).logits, want)


# -- bytes ----------------------------------------------------------------------------------


def test_bytes(tmp_path: Path) -> None:
    """Text is its bytes, both ways, with and without files; a pipeline writes what we write."""
    torch.manual_seed(0)
    model = M.TransformerLM(**{**TEXT, "num_tokens": 256}, depth=1).eval()
    FovealForCausalLM.from_foveal(model).save_pretrained(tmp_path)
    text = "né \0 <s>\n\t 漢 e\u0301 "
    for saved in (False, True):
        tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
        assert type(tokenizer) is ByteTokenizer
        assert tokenizer(text)["input_ids"] == list(text.encode())
        assert tokenizer.decode(list(text.encode())) == text
        if not saved:
            tokenizer.save_pretrained(tmp_path)
    batch = tokenizer(["a", "abc"], padding=True, return_tensors="pt")
    assert batch["attention_mask"].tolist() == [[0, 0, 1], [1, 1, 1]]
    pipe = transformers.pipeline("text-generation", model=str(tmp_path), device="cpu")
    prompts = ["Hé", "Hello there"]
    written = pipe(prompts, max_new_tokens=6, do_sample=False, batch_size=2)
    for start, (found,) in zip(prompts, written, strict=True):
        alone = model.generate(torch.tensor([list(start.encode())]), 6, temperature=0)
        assert found["generated_text"] == bytes(alone[0].tolist()).decode(errors="replace")


def test_bytes_are_not_assumed(tmp_path: Path) -> None:
    """A model with another vocabulary gets no tokenizer of bytes by itself."""
    make()[1].save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="num_tokens=20 is none of bytes"):
        transformers.AutoTokenizer.from_pretrained(tmp_path)
