"""Causal models of foveal trained by transformers, and what else it does to a model."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import foveal

pytest.importorskip("transformers")

import transformers
from causal_models import few, make, prompt, same_weights
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from foveal.integrations.transformers import ByteTokenizer

logging.disable_progress_bar()
pytestmark = pytest.mark.usefixtures("strangers")


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
