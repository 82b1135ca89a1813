"""A new task is one small class, a new data set another: a stranger's pair trains and scores."""

import json
import sys
from dataclasses import dataclass

import pytest
import torch

from foveal.cli import main
from foveal.data.sampling import spread
from foveal.recipes.config import load_recipe
from foveal.recipes.kind import TASKS, Kind, find_kind
from foveal.recipes.run import evaluate, generate, train
from foveal.recipes.vae.kind import encode_each


@dataclass(frozen=True, kw_only=True)
class SumsConfig:
    """How many sums.

    Attributes:
        path: a name.
        count: of sums.
    """

    path: str = "sums"
    count: int = 40


class Sums:
    """A stranger's data: three numbers, and their sum."""

    name = "sums"

    def __init__(self, count):
        self.x = torch.randn(count, 3, generator=torch.Generator().manual_seed(count))

    def __len__(self):
        return len(self.x)

    def read(self, indices):
        return self.x[indices], self.x[indices].sum(1, keepdim=True)

    def checksum(self):
        return f"{float(self.x.sum()):.3f}"

    def subset(self, index, name):
        part = Sums(1)
        part.x, part.name = self.x[index], name
        return part


class Addition(Kind):
    """A stranger's task: all that training and scoring need."""

    data = SumsConfig
    unit, score, things = "sums", "error", "sums"

    def open(self, data):
        return Sums(data.count), Sums(10)

    def loss(self, task, model, batch):
        x, y = batch
        return (model(x) - y).square().mean()

    def evaluate(self, task, *, quick, rank, world_size):
        index = spread(len(task.held_out), 0)[rank::world_size]
        x, y = task.held_out.read(index)
        return {"error": (float((task.model(x) - y).abs().sum()), float(len(index)))}

    def open_to_score(self, run, data):
        return Sums(10)

    def measure(self, run, model, found, **options):
        x, y = found.read(torch.arange(len(found)))
        return {"error": float((model(x) - y).abs().mean().detach()), "sums": len(found)}


KIND = Addition()

RECIPE = """task = "strangers_task:KIND"
[model]
name = "torch.nn:Linear"
in_features = 3
out_features = 1
[data]
count = 30
[training]
steps = {steps}
batch_size = 5
device = "cpu"
precision = "float32"
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """A recipe that names this file's task as a package of the user's own."""
    monkeypatch.setitem(sys.modules, "strangers_task", sys.modules[__name__])
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "sums.toml"
    path.write_text(RECIPE.format(steps=2))
    return path


def test_a_strangers_task_trains_and_is_scored(recipe, tmp_path, capsys):
    """Two steps, a report, a score, a resume; what it does not do is refused by name."""
    folder, outcome = train(load_recipe(str(recipe)), "run")
    assert outcome.step == 2
    assert outcome.metrics["error"] > 0
    result = json.loads((folder / "result.json").read_text())
    assert result["facts"]["training data"].startswith("sums: 30 sums, checksum")
    assert (folder / "report.html").exists()
    score = evaluate(folder)
    assert score["error"] == pytest.approx(outcome.metrics["error"], rel=1e-5)
    assert score["sums"] == 10
    assert main(["evaluate", "run"]) == 0
    assert "error  " in capsys.readouterr().out
    recipe.write_text(RECIPE.format(steps=4))
    assert train(load_recipe(str(recipe)), "run", resume=True)[1].step == 4
    with pytest.raises(ValueError, match="generate needs a run of the task 'bytes'"):
        generate(folder, "x")
    assert main(["evaluate", "run", "--stride", "4"]) == 2
    assert "--stride is for runs on text, but this one trains" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("byte", "unknown task 'byte' in recipe .*did you mean 'bytes'"),
        ("nowhere.at_all:KIND", "cannot import the task 'nowhere.at_all:KIND'"),
        ("strangers_task:Absent", "cannot import the task"),
        ("os:system", "is not a foveal.recipes.kind.Kind"),
        (3, "unknown task 3"),
    ],
)
def test_what_is_no_task_is_named(recipe, task, words):
    """A misspelt name, a module that is not there, and what is no kind at all."""
    recipe.write_text(recipe.read_text().replace('"strangers_task:KIND"', json.dumps(task), 1))
    with pytest.raises(ValueError, match=words) as caught:
        load_recipe(str(recipe))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("task", TASKS)
def test_each_task_says_what_it_is(task):
    """What it is scored by, what its examples are called, and how a report shows the score."""
    kind = find_kind(task)
    assert isinstance(kind, Kind)
    assert kind.score
    assert kind.things != Kind.things
    assert kind.score in kind.forms
    assert kind is find_kind(task)


def test_a_recipe_of_text_loads_no_other_task(after_torch):
    """Kinds are found by name, so that text does not wait for what trains pictures."""
    code = (
        "import sys; from foveal.recipes import load_recipe, run, score; "
        "load_recipe('bytes-transformer'); "
        "print(*[name for name in sys.modules if name.startswith('foveal.recipes.')])"
    )
    tasks = {name.split(".")[2] for name in after_torch(code).split()} & set(TASKS)
    assert tasks == {"bytes"}


def test_processes_encode_the_pictures_that_they_read(monkeypatch):
    """Each of three reads its share alone, and all get the tokens of all, in their order."""
    read = [[], [], []]
    whose = [0]

    class Doubling(torch.nn.Module):
        grid = (1, 1)

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def get_codebook_indices(self, images):
            return images.flatten(1)[:, :1].long() * 2

    def pictures(index):
        read[whose[0]] += index.tolist()
        return index.float()[:, None, None, None].expand(-1, 3, 2, 2)

    def in_shares(compute):
        found = []
        for whose[0] in range(3):
            found.append(compute(whose[0], 3))
        return found

    monkeypatch.setattr("foveal.training.dealing.in_shares", in_shares)
    tokens = encode_each(Doubling(), 230, pictures)
    assert tokens[:, 0].tolist() == [2 * number for number in range(230)]
    assert sorted(read[0] + read[1] + read[2]) == list(range(230))
    assert [len(one) for one in read] == [100, 100, 30]
