"""Recipes: the shipped ones are complete, and mistakes in one's own are named."""

import pytest
import torch

from foveal.data.tokens import CaptionTokenizer
from foveal.recipes.build import build_model
from foveal.recipes.config import config_from_dict, load_recipe, read_recipe, recipe_names
from foveal.recipes.kind import find_kind
from foveal.recipes.settings import first_difference


def build(config, **assets):
    """The model of a configuration."""
    return find_kind(config.task).build(config, **assets)


@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipes_say_what_to_expect_and_build(name):
    """Each opens with what it does, how long, which score and the command, and makes a model."""
    comments = [line for line in read_recipe(name).splitlines() if line.startswith("#")]
    opening = "\n".join(comments)
    for words in ("What it does", "How long", "What to expect", f"foveal train {name}"):
        assert words in opening
    config = load_recipe(name)
    assert config_from_dict(config.to_dict(), "a round trip") == config
    CHECKS[config.task](config)


def check_bytes(config):
    assert build(config).max_seq_len >= config.data.context


def check_images(config):
    model = build(config, classes=list("abcdefg")).eval()
    assert model(torch.zeros(1, 3, config.data.size, config.data.size)).shape == (1, 7)


def check_sequences(config):
    model = build(config, classes=list("abcdefg"), num_tokens=16).eval()
    assert model(torch.zeros(1, 50, dtype=torch.long)).shape == (1, 7)
    assert model.max_seq_len >= config.data.length


def check_pixels(config):
    assert build(config).max_seq_len == config.data.length + 1


def check_vae(config):
    images = torch.zeros(1, 3, config.data.size, config.data.size)
    vae = build(config).eval()
    assert vae.decode(vae.get_codebook_indices(images)).shape == images.shape


def check_clip(config):
    assert build(config, tokenizer=CaptionTokenizer.train(["a red ball"])).num_parameters > 0


def check_captions(config):
    vae = build(load_recipe("vae-emoji"))
    assert (
        build(config, vae=vae, tokenizer=CaptionTokenizer.train(["a red ball"])).num_parameters > 0
    )


CHECKS = {
    "bytes": check_bytes,
    "images": check_images,
    "sequences": check_sequences,
    "pixels": check_pixels,
    "vae": check_vae,
    "clip": check_clip,
    "captions": check_captions,
}


def test_the_same_seed_draws_the_same_weights(recipe):
    """A run starts from weights that its seed alone decides."""
    one, two = (build(load_recipe(str(recipe))).state_dict() for _ in range(2))
    assert all((one[name] == two[name]).all() for name in one)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("warmup_steps", "warmup_stps", r"'warmup_stps' in \[optimizer\].*'warmup_steps'"),
        ("[training]", "[trainign]", r"'trainign' in recipe .*'training'"),
        ("context = 16", "contxt = 16", r"'contxt' in \[data\].*'context'"),
        ('"bytes"', '"byts"', "unknown task 'byts'.*'bytes'"),
        ('name = "TransformerLM"', 'nme = "x"', "must name the model"),
        ("steps = 24", 'steps = "24"', r"steps in \[training\].* must be a whole number"),
        ("steps = 24", "steps = 24 24", "not valid TOML"),
        ("[data]", "[[data]]", "data must be a table"),
    ],
)
def test_mistakes_in_a_recipe_name_key_recipe_and_fix(recipe, old, new, words):
    """One line that names the key, the recipe and the nearest valid key."""
    recipe.write_text(recipe.read_text().replace(old, new, 1))
    with pytest.raises(ValueError, match=words) as caught:
        load_recipe(str(recipe))
    assert "tiny.toml" in str(caught.value) or "task" in words
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"name": "TransformrLM"}, "unknown model name 'TransformrLM'; did you mean"),
        ({"name": "TransformerLM", "dimm": 3}, r"'dimm' in \[model\] of r .* 'dim'"),
        ({"name": "os:system"}, "not a torch.nn.Module"),
        ({"name": "nowhere:Model"}, "cannot import"),
        ({"name": "TransformerLM", "pattern": {"name": "SlidingWindw"}}, "SlidingWindow"),
        ({"name": "TransformerLM", "pattern": "SlidingWindow(windo=3)"}, "window"),
        ({"name": "TransformerLM", "dim": 10, "heads": 3, "dim_head": None}, "heads"),
    ],
)
def test_mistakes_in_the_model_are_named(table, words):
    """Unknown models, keywords and patterns, and sizes that do not fit, are one line each."""
    with pytest.raises(ValueError, match=words) as caught:
        build_model(table, "r")
    assert "\n" not in str(caught.value)


def test_a_model_of_ones_own_can_be_named():
    """'package.module:Class' reaches any module class; patterns come as text or tables."""
    assert build_model({"name": "torch.nn:Linear", "in_features": 2, "out_features": 3}, "r")
    window = {"name": "SlidingWindow", "window": 4}
    table = {"name": "TransformerLM", "dim": 8, "heads": 1, "depth": 2, "max_seq_len": 8}
    model = build_model({**table, "pattern": [window, "Full(causal=True)"]}, "r")
    assert [type(p).__name__ for p in model.config["pattern"]] == ["SlidingWindow", "Full"]


def test_a_language_model_must_be_causal(recipe):
    """A pattern that looks ahead is refused before the training starts."""
    recipe.write_text(recipe.read_text().replace("causal = true", "causal = false"))
    with pytest.raises(ValueError, match="must be causal"):
        build(load_recipe(str(recipe)))


def test_only_what_changes_training_counts_as_different(recipe):
    """Budgets and logging may change on resuming; the model, the data and the seed may not."""
    base = load_recipe(str(recipe)).to_dict()
    for section, key, same in [
        ("training", "steps", True),
        ("training", "log_every", True),
        ("training", "seed", False),
        ("model", "dim", False),
        ("data", "path", False),
        ("optimizer", "learning_rate", False),
    ]:
        changed = {**base, section: {**base[section], key: 77}}
        assert first_difference(base, changed) == (None if same else f"{section}.{key}")
