"""Sequence runs: the Long Range Arena recipes train and are scored from end to end."""

import dataclasses
import json

import pytest

from foveal.cli import main
from foveal.recipes.config import load_recipe
from foveal.recipes.run import evaluate, train
from foveal.recipes.sequences.kind import KIND
from foveal.training.config import TrainingConfig


def tiny(name, **data):
    """A shipped recipe, cut down until it takes seconds."""
    config = load_recipe(name)
    return dataclasses.replace(
        config,
        model={**config.model, "dim": 16, "depth": 1, "heads": 2, "dim_head": 8},
        data=dataclasses.replace(config.data, **data),
        training=TrainingConfig(
            steps=3, batch_size=2, device="cpu", precision="float32", evaluate_every=2
        ),
    )


@pytest.mark.parametrize("name", ["lra-listops", "lra-listops-dense"])
def test_train_and_evaluate(name, tmp_path, capsys):
    """A run is trained, scored, reported and asked for something it cannot do."""
    folder, outcome = train(tiny(name, train_examples=6, test_examples=4), str(tmp_path / "run"))
    assert outcome.step == 3
    assert json.loads((folder / "classes.json").read_text()) == [str(i) for i in range(10)]
    assert main(["evaluate", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "4 sequences" in shown
    assert "top-1 accuracy" in shown
    assert "sequences of ListOps" in (folder / "report.html").read_text()
    with pytest.raises(ValueError, match="stride is for runs on text"):
        evaluate(folder, stride=8)
    (folder / "num_tokens.json").unlink()
    assert main(["evaluate", str(folder)]) != 0
    assert "num_tokens.json" in capsys.readouterr().err


@pytest.mark.parametrize("task", ["listops", "image"])
def test_the_baseline_has_equal_size(task):
    """Both recipes of a task differ in the attention alone."""
    ours, dense = (load_recipe(f"lra-{task}{end}") for end in ("", "-dense"))
    sizes = [
        sum(p.numel() for p in KIND.build(config, classes=["x"] * 10, num_tokens=256).parameters())
        for config in (ours, dense)
    ]
    assert sizes[0] == sizes[1]
    assert (ours.data, ours.optimizer, ours.training) == (
        dense.data,
        dense.optimizer,
        dense.training,
    )
