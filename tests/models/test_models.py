"""What all models share: configuration, registry, files, cost, masks, compilation."""

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from foveal import patterns as P
from foveal.models import (
    HourglassTransformerLM,
    Model,
    TransformerConfig,
    TransformerLM,
    cost,
    create_model,
    list_models,
    load_model,
)
from foveal.ops import choose

SMALL = {"num_tokens": 20, "dim": 8, "heads": 2, "dim_head": 4, "max_seq_len": 64}


def models():
    torch.manual_seed(0)
    return [
        TransformerLM(**SMALL, depth=2, pattern=[P.SlidingWindow(5), P.Full(causal=True)]),
        TransformerLM(**SMALL, depth=1, tie_embeddings=True, activation="swiglu", kv_heads=1),
        HourglassTransformerLM(**SMALL, depth=(1, (1, 1, 1), 1), shorten_factor=(2, 3)),
        HourglassTransformerLM(
            **SMALL, depth=(1, 1, 1), attn_resampling=False, updown_sample_type="linear"
        ),
    ]


each_model = pytest.mark.parametrize("index", range(4))


@each_model
def test_save_and_load(index, tmp_path):
    """A saved model comes back with its configuration, weights, dtype and outputs."""
    model = models()[index].double().eval()
    model.save_pretrained(tmp_path / "new" / "folder")
    again = type(model).from_pretrained(tmp_path / "new" / "folder")
    assert again.config == model.config
    assert not again.training
    tokens = torch.randint(0, 20, (2, 11))
    assert torch.equal(again(tokens), model(tokens))
    assert sorted(p.name for p in (tmp_path / "new" / "folder").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    again(tokens).sum().backward()  # still trainable
    again.save_pretrained(tmp_path / "new" / "folder")  # and over itself


@pytest.mark.parametrize(
    "pattern",
    [
        P.Union(P.SlidingWindow(4), P.Blocks(8, causal=True)),
        P.TextImage(5, P.Axial((6, 7), "column", causal=True)),
        P.BlockSparse.fixed(64, block_size=8, attention="unidirectional"),
        [P.Strided(3), P.Fixed(4, 1), P.Neighborhood((8, 8), 3, causal="raster")],
    ],
    ids=str,
)
def test_patterns_survive_the_file(pattern, tmp_path):
    """Nested patterns and layouts are written as names and fields, and read back equal."""
    TransformerLM(**SMALL, depth=1, pattern=pattern).save_pretrained(tmp_path)
    wanted = tuple(pattern) if isinstance(pattern, list) else pattern
    assert load_model(tmp_path).config["pattern"] == wanted


def test_pattern_as_text():
    """A pattern may be written as text, which is how commands and recipes name one."""
    model = TransformerLM(**SMALL, depth=1, pattern="SlidingWindow(7) | Strided(3)")
    assert model.config["pattern"] == P.Union(P.SlidingWindow(7), P.Strided(3))


def test_from_pretrained_of_another_family(tmp_path):
    """The base class loads any family; a family refuses the files of another."""
    models()[2].save_pretrained(tmp_path)
    assert isinstance(Model.from_pretrained(tmp_path), HourglassTransformerLM)
    with pytest.raises(ValueError, match="'hourglass', not a TransformerLM"):
        TransformerLM.from_pretrained(tmp_path)


def test_damaged_files_are_named(tmp_path):
    """Truncated, mismatching and missing files: one line that names the file."""
    models()[0].save_pretrained(tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    good_weights, good_config = weights.read_bytes(), config.read_text()
    for cut in (0, 5, 100, len(good_weights) - 1):
        weights.write_bytes(good_weights[:cut])
        with pytest.raises(ValueError, match=r"model\.safetensors is truncated or damaged"):
            load_model(tmp_path)
    weights.write_bytes(good_weights)
    config.write_text(good_config[:-20])
    with pytest.raises(ValueError, match=r"config\.json is damaged"):
        load_model(tmp_path)
    content = json.loads(good_config)
    for name, value, message in [
        ("dim", 16, r"model\.safetensors does not fit config\.json .* has shape"),
        ("depth", 3, "is missing"),
        ("depth", 1, "is not part of the model"),
        ("dimm", 8, "did you mean 'dim'"),
        ("dim", "eight", r"config\.json does not describe a model"),
    ]:
        changed = {**content, "config": {**content["config"], name: value}}
        config.write_text(json.dumps(changed))
        with pytest.raises(ValueError, match=message):
            load_model(tmp_path)
    config.write_text(json.dumps({**content, "family": "hourgloss"}))
    with pytest.raises(ValueError, match="unknown model family 'hourgloss'"):
        load_model(tmp_path)
    config.write_text(good_config)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        load_model(tmp_path)


def test_registry():
    """Names list by shell pattern, build with overrides, and suggest what was meant."""
    assert {"transformer", "hourglass"} <= set(list_models())
    assert all(name.startswith("hour") for name in list_models("hour*"))
    model = create_model("transformer_tiny", depth=1, num_tokens=30)
    assert model(torch.zeros(1, 3, dtype=torch.long)).shape == (1, 3, 30)
    with pytest.raises(ValueError, match="did you mean 'hourglass'"):
        create_model("hourglas")
    with pytest.raises(ValueError, match="did you mean 'depth'"):
        create_model("transformer", dept=3)


def test_configuration_object_and_keywords():
    """A model takes a configuration, keywords, or both; config lists every keyword."""
    settings = TransformerConfig(**SMALL, depth=3)
    model = TransformerLM(settings, depth=1)
    assert model.config["depth"] == 1
    assert model.config["dim"] == 8
    assert TransformerLM(**model.config).config == model.config


@each_model
def test_mask_hides_padding(index):
    """Right padding changes no real logit; left padding leaks nothing into real ones."""
    model = models()[index].double().eval()
    tokens = torch.randint(0, 20, (2, 19))
    mask = torch.arange(19)[None] < torch.tensor([[7], [19]])
    torch.testing.assert_close(model(tokens, mask)[:1, :7], model(tokens[:1, :7]))
    left = mask.flip(1)
    other = torch.where(left, tokens, (tokens + 3) % 20)
    torch.testing.assert_close(model(tokens, left)[left], model(other, left)[left])


@each_model
def test_every_parameter_gets_a_gradient(index):
    """No weight of any model is dead."""
    model = models()[index]
    model(torch.randint(0, 20, (2, 40))).logsumexp(-1).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


@each_model
def test_cost(index):
    """Parameters are counted, operations agree with what torch counts, the cache with a real one.

    The tile plan counts the pairs of the pattern, as cost() does.
    """
    model = models()[index].eval()
    found = cost(model, 60)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choose, "forced", lambda: "tiled")
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.zeros(1, 60, dtype=torch.long))
    assert found.flops == counter.get_total_flops() == 60 * found.flops_per_token
    assert found.parameters == sum(p.numel() for p in model.parameters())
    _, cache = model.prefill(torch.zeros(1, 60, dtype=torch.long), max_length=60)
    assert found.cache_bytes_per_token * 60 == pytest.approx(cache.num_bytes)
    with pytest.raises(ValueError, match="length"):
        cost(model, 0)


def test_flops_by_hand():
    """Projections, feed-forward, logits and the allowed pairs of a one-layer model."""
    model = TransformerLM(**SMALL, depth=1, pattern=P.SlidingWindow(5))
    linear = 8 * 24 + 8 * 8 + 2 * 8 * 32 + 8 * 20
    pairs = P.SlidingWindow(5).num_pairs(60)
    assert cost(model, 60).flops == 2 * linear * 60 + 4 * 8 * pairs
    assert model.num_parameters == cost(model).parameters


@each_model
def test_autocast_and_checkpointing(index):
    """bfloat16 autocast trains near float32, and checkpointing changes no gradient."""
    model = models()[index]
    tokens = torch.randint(0, 20, (2, 33))
    with torch.autocast("cpu", torch.bfloat16):
        half = model(tokens)
    torch.testing.assert_close(half.float(), model(tokens), rtol=0.1, atol=0.1)
    grads = []
    for enabled in (False, True):
        model.activation_checkpointing(enabled).zero_grad()
        model(tokens).square().sum().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    for plain, checkpointed in zip(*grads, strict=True):
        torch.testing.assert_close(checkpointed, plain)


@each_model
def test_dropout_trains_and_is_off_in_evaluation(index):
    """Dropout draws in training and changes nothing in evaluation."""
    source = models()[index]
    model = type(source)(**{**source.config, "dropout": 0.5})
    model.load_state_dict(source.state_dict())
    tokens = torch.randint(0, 20, (1, 12))
    assert not torch.equal(model(tokens), model(tokens))
    torch.testing.assert_close(model.eval()(tokens), source.eval()(tokens))


@pytest.mark.parametrize(
    ("tokens", "mask", "message"),
    [
        (torch.zeros(3, dtype=torch.long), None, "tokens must be"),
        (torch.zeros(1, 3), None, "int type"),
        (torch.zeros(1, 0, dtype=torch.long), None, "at least one token"),
        (torch.zeros(1, 65, dtype=torch.long), None, "max_seq_len=64"),
        (torch.zeros(1, 3, dtype=torch.long), torch.ones(1, 3), "mask must be bool"),
    ],
)
def test_nonsense_inputs(tokens, mask, message):
    """Inputs of the wrong shape or kind are one clear error."""
    with pytest.raises(ValueError, match=message):
        models()[0](tokens, mask)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 0}, "dim must be a positive int"),
        ({"heads": 3, "dim_head": None}, "heads must divide dim"),
        ({"kv_heads": 5}, "kv_heads must divide heads"),
        ({"dropout": -0.1}, "dropout"),
        ({"depth": -1}, "depth"),
        ({"pattern": 3}, "pattern must be a pattern"),
        ({"pattern": []}, "pattern must be a pattern"),
        ({"pattern": "SlidingWindw(3)"}, "did you mean 'SlidingWindow'"),
        ({"num_tokens": 0}, "num_tokens"),
        ({"max_seq_len": 0}, "max_seq_len"),
    ],
    ids=str,
)
def test_nonsense_options(options, message):
    """Sizes that do not fit are refused by name."""
    with pytest.raises(ValueError, match=message):
        TransformerLM(**options)
