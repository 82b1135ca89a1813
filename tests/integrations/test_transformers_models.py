"""foveal's causal language models inside transformers, against themselves and plain loops."""

import copy
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import foveal
from foveal import models as M
from foveal import patterns as P
from foveal.models import registry
from foveal.models.causal import CausalLM
from foveal.models.transformer import TransformerConfig

pytest.importorskip("transformers")

import transformers
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

from foveal.integrations.transformers import (
    ByteTokenizer,
    FovealCache,
    FovealConfig,
    FovealForCausalLM,
)

logging.disable_progress_bar()
TEXT: dict[str, Any] = {"num_tokens": 20, "dim": 8, "heads": 2, "dim_head": 4, "max_seq_len": 64}


class StrangersLM(M.TransformerLM):
    """A causal model that somebody else registered, with a part named as nothing of ours is."""

    family = "strangers"
    config_class = TransformerConfig

    def __init__(self, config: TransformerConfig | None = None, /, **options: Any) -> None:
        super().__init__(config, **options)
        self.model = nn.Linear(self.dim, self.dim)

    def _logits(self, x: Tensor) -> Tensor:
        return super()._logits(self.model(x))


@pytest.fixture(autouse=True, scope="module")
def _stranger() -> Iterator[None]:
    """Registered for as long as these tests run."""
    registry.register({})(StrangersLM)
    yield
    del registry._families[StrangersLM.family]


MODELS = {
    "windows": lambda: M.TransformerLM(
        **TEXT, depth=2, pattern=[P.SlidingWindow(5), P.Strided(3)], kv_heads=1, sinks=True
    ),
    "t5": lambda: M.TransformerLM(**TEXT, depth=2, positions="t5", tie_embeddings=True),
    "alibi": lambda: M.TransformerLM(**TEXT, depth=1, positions="alibi"),
    "pyramid": lambda: M.TransformerLM(**TEXT, depth=1, pattern=P.Pyramid(4, causal=True)),
    "hourglass": lambda: M.HourglassTransformerLM(
        **TEXT, depth=(1, (1, 1, 1), 1), shorten_factor=(2, 3)
    ),
    "relative": lambda: M.HourglassTransformerLM(**TEXT, depth=(1, 1, 1), positions="relative"),
    "hourglass package": lambda: M.HourglassTransformerLM(
        **TEXT,
        depth=(1, 1, 1),
        compat="hourglass-transformer-pytorch-0.0.6",
        norms="single",
        positions="absolute",
        shorten_factor=2,
    ),
    "htransformer": lambda: M.HTransformer1D(
        **TEXT, depth=2, block_size=4, causal=True, shift_tokens=True, relative_bias=True
    ),
    "coarse": lambda: M.HTransformer1D(
        **TEXT, depth=2, block_size=4, causal=True, queries="coarse", reversible=True
    ),
    "htransformer package": lambda: M.HTransformer1D(
        **TEXT, depth=1, block_size=2, causal=True, compat="h-transformer-1d-0.1.9"
    ),
    "strangers": lambda: StrangersLM(**TEXT, depth=1),
}
FEW = ("windows", "relative", "htransformer")
every = pytest.mark.parametrize("name", MODELS)
few = pytest.mark.parametrize("name", FEW)


def make(name: str = "windows") -> tuple[CausalLM, FovealForCausalLM]:
    """A model in evaluation mode, with weights that no two tokens come equal by, and wrapped."""
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn_like(value), alpha=0.3)
    return model, FovealForCausalLM.from_foveal(model)


def prompt(rows: int = 3, length: int = 7) -> Tensor:
    torch.manual_seed(1)
    return torch.randint(1, 20, (rows, length))


def padded(side: str, least: int = 1) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Tokens and mask (4, 8), of 8, 3, `least` and 3 real tokens a row; and these rows alone."""
    tokens, counts = prompt(4, 8), [8, 3, least, 3]
    mask = torch.zeros(4, 8, dtype=torch.long)
    for row, count in enumerate(counts):
        mask[row, slice(8 - count, 8) if side == "left" else slice(0, count)] = 1
    rows = [one[real.bool()][None] for one, real in zip(tokens, mask, strict=True)]
    return tokens.masked_fill(mask == 0, 999), mask, rows  # what no vocabulary has


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


# -- files ----------------------------------------------------------------------------------


def same_weights(one: nn.Module, other: nn.Module) -> None:
    """The same names and numbers, and as many parameters, so that what is tied stays so."""
    assert one.state_dict().keys() == other.state_dict().keys()
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    assert len(list(one.parameters())) == len(list(other.parameters()))


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


# -- training -------------------------------------------------------------------------------


class _Rows(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 40

    def __getitem__(self, place: int) -> dict[str, Tensor]:
        torch.manual_seed(place)
        row = torch.randint(20, (6,))
        return {"input_ids": row, "labels": row}


def test_trainer(tmp_path: Path) -> None:
    """Twenty steps of Trainer have the losses of a loop by hand; its checkpoint opens."""
    model, wrapped = make()
    own = copy.deepcopy(model)
    given = transformers.TrainingArguments(
        str(tmp_path),
        max_steps=20,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        optim="sgd",
        save_steps=20,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        activation_checkpointing=True,
    )

    class InOrder(transformers.Trainer):
        def _get_train_sampler(self, *args: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    trainer = InOrder(wrapped, given, train_dataset=_Rows())
    trainer.train()
    got = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    optimizer, rows = torch.optim.SGD(own.train().parameters(), 1e-2), _Rows()
    want = []
    for step in range(20):
        tokens = torch.stack([rows[2 * step + i]["input_ids"] for i in range(2)])
        loss = nn.functional.cross_entropy(
            own(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()
        )
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        want.append(loss.item())
    torch.testing.assert_close(torch.tensor(got), torch.tensor(want), rtol=0.0, atol=1e-4)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-20")
    same_weights(model, opened.model)


def test_checkpointing() -> None:
    """gradient_checkpointing_enable is our activation checkpointing: the same gradients."""
    _, wrapped = make()
    grads = []
    for change in (None, wrapped.activation_checkpointing_enable):
        if change is not None:
            change()
        assert wrapped.is_activation_checkpointing is (change is not None)
        wrapped.train()(prompt(), labels=prompt()).loss.backward()
        grads.append(wrapped.get_input_embeddings().weight.grad)
        wrapped.zero_grad()
    assert any(getattr(one, "checkpointing", False) for one in wrapped.model.modules())
    torch.testing.assert_close(*grads)
    with pytest.warns(FutureWarning, match="deprecated"):
        wrapped.gradient_checkpointing_disable()
    assert not any(getattr(one, "checkpointing", False) for one in wrapped.model.modules())
    with pytest.raises(ValueError, match="every_n_layers=2"):
        wrapped.activation_checkpointing_enable(every_n_layers=2)


@pytest.mark.parametrize("name", ["windows", "t5"])
def test_embeddings(name: str, tmp_path: Path) -> None:
    """More tokens, or fewer: old logits stay, files follow, and the output layer goes along."""
    model, wrapped = make(name)
    before, tied = wrapped(prompt()).logits, name == "t5"
    assert wrapped.get_input_embeddings() is model.token_emb
    assert wrapped.get_output_embeddings() is model.to_logits
    wrapped.resize_token_embeddings(24, mean_resizing=False)
    assert (model.num_tokens, wrapped.config.vocab_size, model.config["num_tokens"]) == (24,) * 3
    after = wrapped(prompt()).logits
    torch.testing.assert_close(after[..., :20], before)
    assert after.shape[-1] == 24
    wrapped.save_pretrained(tmp_path)
    same_weights(model, foveal.load_model(tmp_path))
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(prompt()).logits, after)
    wrapped.resize_token_embeddings(21)
    assert wrapped(prompt()).logits.shape[-1] == 21
    if tied:
        with pytest.raises(ValueError, match="tie_embeddings"):
            wrapped.set_output_embeddings(nn.Linear(8, 20))


class _Adapter(nn.Module):
    """What peft puts in the place of a projection."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.down, self.up = nn.Linear(base.in_features, 2), nn.Linear(2, base.out_features)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


@few
def test_adapters(name: str) -> None:
    """Every projection found by name can be exchanged, and the adapters alone are trained."""
    model, wrapped = make(name)
    before = wrapped(prompt()).logits
    wrapped.requires_grad_(False)
    found = [one for one, part in wrapped.named_modules() if type(part) is nn.Linear]
    adapters = []
    for path in found:
        home, _, last = path.rpartition(".")
        adapters.append(_Adapter(wrapped.get_submodule(path)))
        setattr(wrapped.get_submodule(home), last, adapters[-1])
    out = wrapped(prompt(), labels=prompt())
    assert not torch.allclose(out.logits, before, atol=1e-3)
    out.loss.backward()
    assert all(one.up.weight.grad is not None for one in adapters)
    tokens = wrapped.generate(prompt(), max_new_tokens=5, do_sample=False)
    assert torch.equal(
        tokens, wrapped.generate(prompt(), max_new_tokens=5, do_sample=False, use_cache=False)
    )
    assert torch.equal(tokens, model.generate(prompt(), 5, temperature=0))


def test_collators(tmp_path: Path) -> None:
    """Batches as the collators of transformers make them: padded, and packed without padding."""
    model, wrapped = make()
    rows = [{"input_ids": prompt(1, n)[0].tolist()} for n in (5, 2, 7)]
    packed = transformers.DataCollatorWithFlattening()(copy.deepcopy(rows))
    tokenizer = ByteTokenizer()
    collate = transformers.DataCollatorForLanguageModeling(tokenizer, mlm=False)
    total = torch.zeros(())
    for row in rows:
        tokens = torch.tensor(row["input_ids"])
        logits = model(tokens[None])[0, :-1]
        total = total + nn.functional.cross_entropy(logits, tokens[1:], reduction="sum")
    for batch in (packed, collate(rows)):
        torch.testing.assert_close(wrapped(**batch).loss, total / 11)


def test_accelerate() -> None:
    """accelerate prepares it as any model."""
    accelerate = pytest.importorskip("accelerate")
    _, wrapped = make()
    worker = accelerate.Accelerator(cpu=True)
    prepared, optimizer = worker.prepare(wrapped, torch.optim.SGD(wrapped.parameters(), 0.1))
    before = prepared(prompt(), labels=prompt()).loss
    worker.backward(before)
    optimizer.step()
    assert prepared(prompt(), labels=prompt()).loss < before
