"""Image runs: train, score, predict and draw attention on pictures that are easy to tell apart."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from foveal.cli import main
from foveal.data.images import ImageDataConfig
from foveal.data.opening import check_data
from foveal.recipes.config import load_recipe
from foveal.recipes.images.kind import probabilities
from foveal.recipes.images.look import predict
from foveal.recipes.run import evaluate, generate, train

RECIPE = """# Tiny
task = "images"

[model]
name = "{model}"
{options}

[data]
path = "{data}"
size = 16
crop = 1

[optimizer]
learning_rate = 5e-3
warmup_steps = 2

[training]
steps = {steps}
batch_size = 8
precision = "float32"
device = "cpu"
checkpoint_every = 4
evaluate_every = 8
log_every = 4
"""
HALONET = """stem_kernel = 3
stem_stride = 2
stem_pool = false
stem_dim = 8
depths = [1]
dims = [8]
heads = [2]
strides = [1]
block_size = 4
halo_size = 1"""
SEPVIT = """dims = [16]
heads = [2]
depths = [2]
window_sizes = [[4, 8]]
strides = [2]"""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Red and blue noise in two class folders."""
    root = tmp_path_factory.mktemp("pictures")
    draw = np.random.default_rng(0)
    for label, name in enumerate(("blue", "red")):
        (root / name).mkdir()
        for number in range(20):
            pixels = draw.integers(0, 90, (20, 24, 3), dtype=np.uint8)
            pixels[..., 2 - 2 * label] += 150
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


@pytest.mark.parametrize("changed", ["another class", "another name"])
def test_a_run_keeps_its_classes_when_the_data_change(pictures, tmp_path, monkeypatch, changed):
    """It cannot go on with others, and is scored with its own; a damaged list is made again."""
    monkeypatch.setattr("foveal.recipes.run.write_run_report", lambda folder: None)
    data = tmp_path / "data"
    shutil.copytree(pictures, data)
    config = load_recipe(str(write(tmp_path, data, "HaloNet", HALONET, steps=4)))
    folder, _ = train(config, str(tmp_path / "run"))
    if changed == "another class":
        shutil.copytree(data / "red", data / "green")
    else:
        (data / "red").rename(data / "scarlet")
    with pytest.raises(ValueError, match=r"have changed since it began: classes\.json"):
        train(config, str(folder), resume=True)
    assert json.loads((folder / "classes.json").read_text()) == ["blue", "red"]
    assert not list(folder.glob(".*.partial"))
    shutil.rmtree(data)
    shutil.copytree(pictures, data)
    (folder / "classes.json").write_text("[")
    assert train(config, str(folder), resume=True)[1].step == 4
    assert evaluate(folder)["classes"] == ["blue", "red"]


def write(folder, pictures, model, options, steps=24):
    path = folder / "tiny.toml"
    text = RECIPE.format(model=model, options=options, data=pictures.as_posix(), steps=steps)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture(scope="module", params=["HaloNet", "SepVisionTransformer"])
def run(request, tmp_path_factory, pictures):
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("run")
    options = HALONET if request.param == "HaloNet" else SEPVIT
    recipe = write(folder, pictures, request.param, options)
    return train(load_recipe(str(recipe)), output=str(folder / "run"))[0]


def test_a_run_learns_and_evaluate_says_how_well(run, capsys, monkeypatch):
    """Easy pictures are told apart, and the score comes with a table and a picture."""
    assert main(["evaluate", str(run)]) == 0
    said = capsys.readouterr().out
    monkeypatch.setattr("foveal.recipes.score.write_run_report", lambda folder: None)
    result = evaluate(run)
    assert result["balanced_accuracy"] > 0.7
    assert sum(map(sum, result["confusion"])) == result["images"] == 4
    for words in ("top-1", "balanced", "recall", "confusion.png", "blue"):
        assert words in said
    assert "top-5" not in said  # of two classes it would always be right
    assert (run / "pictures" / "confusion.png").stat().st_size > 1000
    assert "mean over classes" in (run / "report.html").read_text()


def test_predict_names_classes_and_unreadable_files(run, pictures, tmp_path, capsys):
    """A table for each readable picture, a line for each other one, 2 if there is none."""
    empty = tmp_path / "empty.png"
    empty.write_bytes(b"")
    assert main(["predict", str(run), str(pictures / "red" / "0.png"), str(empty)]) == 0
    said = capsys.readouterr()
    assert "red" in said.out
    assert "%" in said.out
    assert "empty.png is empty" in said.err
    assert main(["predict", str(run), str(empty), str(tmp_path / "none.png")]) == 2
    assert "none.png does not exist" in capsys.readouterr().err
    (ranking,) = (one.ranking for one in predict(run, [str(pictures / "red" / "1.png")]))
    assert sum(share for _, share in ranking) == pytest.approx(1, abs=1e-5)


def test_attention_is_drawn_for_chosen_pixels(run, pictures, tmp_path, capsys):
    """One picture for each pixel; a pixel outside is one clear line."""
    image, output = str(pictures / "blue" / "0.png"), tmp_path / "a.png"
    arguments = ["draw", "attention", str(run), image, "--output", str(output), "--at"]
    assert main([*arguments, "3,4", "15,0"]) == 0
    assert output.stat().st_size > 1000
    assert (tmp_path / "a-2.png").exists()
    capsys.readouterr()
    assert main([*arguments, "16,0"]) == 2
    assert "rows 0 to 15" in capsys.readouterr().err
    assert main([*arguments, "x"]) == 2
    assert "ROW,COLUMN" in capsys.readouterr().err


def test_commands_for_text_refuse_an_image_run(run):
    """They name the task of the run."""
    with pytest.raises(ValueError, match="trains 'images'"):
        generate(run, "a", 3)
    with pytest.raises(ValueError, match="trains 'images'"):
        evaluate(run, stride=4)


def test_a_resumed_run_equals_one_in_one_go(tmp_path, pictures, monkeypatch):
    """The augmented stream goes on where it was: the weights are the same to the last bit."""
    monkeypatch.setattr("foveal.recipes.run.write_run_report", lambda folder: None)
    half = write(tmp_path, pictures, "HaloNet", HALONET, steps=6)
    train(load_recipe(str(half)), output=str(tmp_path / "two"))
    config = load_recipe(str(write(tmp_path, pictures, "HaloNet", HALONET, steps=6)))
    assert train(config, output=str(tmp_path / "two"), resume=True)[1].step == 6
    whole, _ = train(config, output=str(tmp_path / "one"))
    results = [json.loads((tmp_path / n / "result.json").read_text()) for n in ("one", "two")]
    assert whole.exists()
    assert results[0]["accuracy"] == results[1]["accuracy"]


@pytest.mark.parametrize(
    ("path", "words"),
    [("nowhere", "does not exist"), ("lonely", "no class folders"), ("bad.npz", "must have")],
)
def test_bad_data_are_one_line_and_exit_code_2(tmp_path, pictures, path, words, capsys):
    """The line names the data and what was expected of them."""
    (tmp_path / "lonely").mkdir()
    np.savez(tmp_path / "bad.npz", pixels=np.zeros(3))
    recipe = write(tmp_path, pictures, "HaloNet", HALONET)
    output = tmp_path / "out"
    data = str(tmp_path / path)
    assert main(["train", str(recipe), "--data", data, "--output", str(output)]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert len(said.strip().splitlines()) == 1
    assert not output.exists()


def test_stop_and_resume_continue_the_stream(pictures):
    """A stream that loads a saved position deals the very same augmented batch."""
    from foveal.data.image_sources import open_images
    from foveal.data.images import AugmentedImages, ImageDataConfig
    from foveal.data.stream import Stream

    config = ImageDataConfig(path=str(pictures), size=16, mixup=0.5, cutmix=1.0, erasing=0.5)
    one = Stream(AugmentedImages(open_images(config)[0], config), 4, seed=3)
    one.next()
    state = one.state_dict()
    expected = one.next()
    two = Stream(AugmentedImages(open_images(config)[0], config), 4, seed=3)
    two.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(expected, two.next(), strict=True))


def test_views_average_what_the_model_says_of_shifted_and_mirrored_pictures():
    """Ten views are the mean over mirrors and one-pixel shifts, borders repeated."""
    seen = []

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def forward(self, images):
            seen.append(images)
            return images[:, :, 0, 0]

    pixels = torch.randint(0, 256, (2, 3, 5, 6), dtype=torch.uint8)
    one, two, ten = (probabilities(Model(), pixels, views) for views in (1, 2, 10))
    assert len(seen) == 1 + 2 + 10
    plain, mirrored = seen[0], seen[2]
    assert torch.equal(plain.flip(-1), mirrored)
    down = torch.cat((plain[:, :, :1], plain[:, :, :-1]), 2)
    left = torch.cat((plain[..., 1:], plain[..., -1:]), 3)
    assert sum(torch.equal(down, view) for view in seen[3:]) == 1
    assert sum(torch.equal(left, view) for view in seen[3:]) == 1
    corners = torch.stack([view[:, :, 0, 0] for view in seen[3:]])
    torch.testing.assert_close(ten, corners.softmax(-1).mean(0))
    torch.testing.assert_close(one, plain[:, :, 0, 0].softmax(-1))
    assert not torch.equal(one, two)
    with pytest.raises(ValueError, match="must be 1, 2 or 10"):
        check_data(ImageDataConfig(views=3))
