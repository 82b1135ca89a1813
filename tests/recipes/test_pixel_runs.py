"""Pixel runs: train, score, draw and complete pictures that are easy to foresee."""

import json

import numpy as np
import pytest
import torch

from foveal.cli import main
from foveal.data.pixels import to_inputs, to_pictures, to_values
from foveal.recipes.config import load_recipe
from foveal.recipes.pixels.kind import complete_pictures, draw_pictures
from foveal.recipes.run import evaluate, train

RECIPE = """# Tiny
task = "pixels"

[model]
name = "HourglassTransformerLM"
hierarchy = "1@1 1@3 1@1"
dim = 16
heads = 2
dim_head = 8

[data]
path = "{data}"
size = 4
scored_images = 3

[optimizer]
learning_rate = 1e-2
warmup_steps = 2

[training]
steps = 60
batch_size = 4
precision = "float32"
device = "cpu"
evaluate_every = 8
log_every = 4
"""


def test_pictures_and_values():
    """Rows, pixels, channels: there and back; inputs are the values one place later."""
    images = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    values = to_values(images)
    assert values[0, :3].tolist() == images[0, :, 0, 0].tolist()
    assert values[0, 3:6].tolist() == images[0, :, 0, 1].tolist()
    assert torch.equal(to_pictures(values, 4), images)
    inputs = to_inputs(values)
    assert torch.equal(inputs[:, 1:], values[:, :-1])
    assert not inputs[:, 0].any()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on an archive of black and white squares."""
    root = tmp_path_factory.mktemp("pixels")
    label = np.arange(40) % 2
    images = np.repeat(label[:, None] * 255, 48, 1).reshape(-1, 4, 4, 3).astype(np.uint8)
    np.savez(root / "squares.npz", images=images, label=label)
    recipe = root / "tiny.toml"
    recipe.write_text(RECIPE.format(data=root / "squares.npz"))
    folder, outcome = train(load_recipe(str(recipe)), str(root / "run"))
    return folder, outcome


def test_a_run_learns_scores_and_draws(run):
    """Bits per dimension fall far below the eight of noise; report and pictures are there."""
    folder, outcome = run
    assert outcome.metrics["bits_per_dim"] < 1
    result = evaluate(folder)
    assert result["images"] == 3
    assert result["bits_per_dim"] == pytest.approx(outcome.metrics["bits_per_dim"], abs=1e-4)
    for name in ("samples.png", "completions.png", "training.png"):
        assert (folder / "pictures" / name).stat().st_size > 0
    assert json.loads((folder / "result.json").read_text())["facts"]["pictures"]


def test_commands(run, capsys):
    """evaluate prints the score, generate the path of new pictures."""
    folder, _ = run
    assert main(["evaluate", str(folder)]) == 0
    assert "bits per dimension" in capsys.readouterr().out
    assert main(["generate", str(folder), "--length", "2", "--seed", "1"]) == 0
    assert capsys.readouterr().out.strip().endswith("samples.png")
    picture = folder / "pictures" / "samples.png"
    assert main(["generate", str(folder), "--prompt", str(picture)]) == 0
    assert capsys.readouterr().out.strip().endswith("completions.png")


def test_drawing_keeps_what_is_given():
    """Completion keeps the first rows and repeats under a seed; drawing needs nothing."""
    from foveal.models import HourglassTransformerLM

    model = HourglassTransformerLM(
        hierarchy="1@1 1@3 1@1", dim=16, heads=2, dim_head=8, max_seq_len=49
    )
    images = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    one = complete_pictures(model, images, 2, seed=0)
    assert torch.equal(one[:, :, :2], images[:, :, :2])
    assert torch.equal(one, complete_pictures(model, images, 2, seed=0))
    assert torch.equal(complete_pictures(model, images, 4), images)
    assert draw_pictures(model, 3, 4, seed=0).shape == (3, 3, 4, 4)
    with pytest.raises(ValueError, match="rows=5"):
        complete_pictures(model, images, 5)
