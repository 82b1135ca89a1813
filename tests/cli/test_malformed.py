"""Malformed input of every kind: exit code 2, one line, nothing written or left half-written."""

import json
import os
import shutil

import pytest
from malformed import refuse, tree
from safetensors.torch import load_file, save_file

from foveal.cli import main
from foveal.training import checkpoints
from foveal.training.folders import fingerprint

# -- what is typed --------------------------------------------------------------------------------

TYPED = [
    "trian",
    "--hlep",
    "evaluate",
    "evaluate text-run extra",
    "evaluate nowhere",
    "evaluate good.png",
    "evaluate latest",
    "evaluate text-run --dta x",
    "evaluate text-run --context many",
    "evaluate text-run --context",
    "evaluate text-run --context 0",
    "evaluate text-run --context -3",
    "evaluate text-run --context 17",
    "evaluate text-run --context 1000000000000",
    "evaluate text-run --context 99999999999999999999999",
    "evaluate text-run --stride 0",
    "evaluate text-run --stride 17",
    "evaluate text-run --max-bytes -1",
    "evaluate text-run --max-bytes 1",
    "evaluate text-run --max-bytes 1e6",
    "evaluate text-run --max-bytes 10 --full",
    "evaluate text-run --device tpu",
    "evaluate text-run --device cuda:99",
    "evaluate text-run --data nowhere.txt",
    "evaluate text-run --data *.none",
    "evaluate text-run --data /dev/zero",
    "evaluate pictures-run --context 4",
    "evaluate pictures-run --max-bytes 100",
    "evaluate pictures-run --data nowhere",
    "evaluate pictures-run --data good.png",
    "evaluate pictures-run --data /dev/null",
    "generate text-run --length 0",
    "generate text-run --length -5",
    "generate text-run --length 1e12",
    "generate text-run --length 1000000000000",
    "generate text-run --temperature -1",
    "generate text-run --temperature nan",
    "generate text-run --temperature hot",
    "generate text-run --top-k 0",
    "generate text-run --top-p 2",
    "generate text-run --min-p -1",
    "generate text-run --seed 99999999999999999999999999",
    "generate pictures-run --prompt x",
    "predict text-run good.png",
    "predict pictures-run",
    "predict pictures-run good.png --top 0",
    "predict pictures-run good.png --top x",
    "draw attention pictures-run good.png --at 9,9",
    "draw attention pictures-run good.png --at x",
    "draw attention pictures-run good.png --output no/where.png",
    "draw attention pictures-run nothing.png",
    "draw attention text-run good.png",
    "draw picture text-run hello",
    "draw picture pictures-run hello --num 0",
    "draw",
    "draw SlidingWindo(8)",
    "draw SlidingWindow(",
    "draw SlidingWindow(window=0)",
    "draw SlidingWindow(window=1.5)",
    "draw SlidingWindow(window='8')",
    "draw SlidingWindow(8,8,8,8,8)",
    "draw SlidingWindow(widow=8)",
    "draw 7",
    "draw __import__('os')",
    "draw Full().mask(9)",
    "draw Full() --length 0",
    "draw Full() --length -1",
    "draw Full() --length 1000000000",
    "draw Full() --length 99999999999999999999",
    "draw Full() --output no/where.png",
    "draw Full() --output text-run",
    "draw Full() --output .",
    "draw Full() --output x.docx",
    "draw Neighborhood((1000000000,1000000000),3)",
    "draw Halo(1000000000,8,4)",
    "draw Axial((0,4))",
    "draw Pyramid(block_size=0)",
    "report nowhere",
    "bench widow",
    "bench --rounds 0",
    "bench --threads 0",
    "bench --threads 99999999",
    "bench --device cdua",
    "list x",
    "train",
    "train bytes-hourglas",
    "train missing.toml",
    "train text-run",
    "train text.txt",
    "train good.png",
    "train .",
    "train text.toml --stpes 3",
    "train text.toml --steps many",
    "train text.toml --steps 0",
    "train text.toml --steps 1e3",
    "train text.toml --device abacus",
    "train text.toml --data nowhere",
    "train text.toml --data.context 0",
    "train text.toml --data.context 100000",
    "train text.toml --output text.txt",
    "train text.toml --output text-run",
    "train text.toml --output .",
    "train text.toml --output= ",
    "train text.toml --output /dev/null",
    "train text.toml --output /proc/run",
    "train text.toml --steps 3 --steps x",
    "train text.toml --data= ",
    "train text.toml --data https://example.com/book.txt",
    "train text.toml --data /proc/self/mem",
    "train text.toml --training.seed -1",
    "train text.toml --model.depth 1000000000",
    "train text.toml --model.depth 20000",
    "train text.toml --model.pattern [1,2]",
    "train pictures.toml --data.size 1000000",
    "train text.toml --output text.txt/run",
    "train text.toml --output text.txt/a/b",
    "train text.toml --model.heads 0",
    "train text.toml --model.depth None",
    "train text.toml --model.dim 1e99",
    "train text.toml --model.dim 1000000000",
    "train text.toml --model.pattern SlidingWindo(3)",
    "train text.toml --training.batch-size 0",
    "train text.toml --training.precision float7",
    "train text.toml --optimizer.name sgd",
    "train text.toml --optimizer.learning-rate -1",
    "train text.toml --resume text.txt",
]


@pytest.mark.parametrize("line", TYPED)
def test_what_is_typed(looked_at, capsys, line):
    """Words, ranges, sizes and names that make no sense."""
    refuse(capsys, looked_at, line.split())


def test_values_that_no_terminal_shows(looked_at, capsys):
    """Control characters, zero bytes, long and deeply nested values stay one printable line."""
    for arguments in (
        ["evaluate", "x" * 5000],
        ["evaluate", "a\x1b[2Jb\nc"],
        ["evaluate", "a\0b"],
        ["draw", "(" * 3000],
        ["draw", "SlidingWindow(" * 400 + "1" + ")" * 400],
        ["draw", "-" * 2000 + "1"],
        ["predict", "pictures-run", "a\0b.png"],
        ["train", "text.toml", "--data", "a\0b"],
        ["train", "text.toml", "--model.pattern", "[" * 3000],
        ["train", "\udcff.toml"],
        ["list", ""],
        ["list", "", "--json"],
        ["report", "text-run", "--to", ""],
        ["draw", "picture", "text-run", " "],
    ):
        said = refuse(capsys, looked_at, arguments)
        assert said.isprintable()
        assert "nrecognized" not in said
        assert "--to," not in said


# -- recipes --------------------------------------------------------------------------------------

RECIPES = {
    "not text": b"\xff\xfe\x00\x01",
    "empty": b"",
    "not TOML": b"task = = 3",
    "two values of a key": b"task = 'bytes'\ntask = 'images'",
    "deeply nested": b"a = " + b"[" * 5000,
    "another task": ("bytes", "bites"),
    "a task that is a list": ('task = "bytes"', "task = ['bytes']"),
    "a task that is a table": ('task = "bytes"', "[task]\nname = 'bytes'"),
    "a section that is a number": ("[optimizer]", "optimizer = 3\n[nothing]"),
    "a section that is a list": ("[data]", "[[data]]"),
    "an unknown section": ("[optimizer]", "[optimiser]"),
    "no model": ('name = "TransformerLM"', ""),
    "a model that is a number": ('name = "TransformerLM"', "name = 3"),
    "an unknown model": ("TransformerLM", "TransfomerLM"),
    "a model of nowhere": ("TransformerLM", "no.where:Model"),
    "a model that is no model": ("TransformerLM", "os:system"),
    "a model's file that is missing": ("TransformerLM", ":"),
    "an unknown keyword": ("dim = 16", "dimm = 16"),
    "a negative size": ("dim = 16", "dim = -16"),
    "more tokens than bytes": ("dim = 16", "dim = 16\nnum_tokens = 257"),
    "an absurd size": ("dim = 16", "dim = 10000000000"),
    "a size that is text": ("dim = 16", "dim = 'wide'"),
    "a size that is a truth": ("dim = 16", "dim = true"),
    "a size that is a table": ("dim = 16", "dim = { a = 1 }"),
    "heads that do not divide": ("heads = 2", "heads = 2.5"),
    "dropout above 1": ("dropout = 0.1", "dropout = 2.0"),
    "dropout that is no number": ("dropout = 0.1", "dropout = nan"),
    "a pattern without a name": ('name = "SlidingWindow", ', ""),
    "a pattern of another name": ("SlidingWindow", "SlidingDoor"),
    "a pattern with another field": ("window = 8", "widow = 8"),
    "a pattern with a wrong field": ("window = 8", "window = 'eight'"),
    "a pattern that sees the future": ("causal = true", "causal = false"),
    "a pattern that is a number": (
        '{ name = "SlidingWindow", window = 8, causal = true }',
        "5",
    ),
    "a path that is a number": ("path = ", "path = 3 #"),
    "a context that is text": ("context = 16", "context = 'long'"),
    "a context of nothing": ("context = 16", "context = 0"),
    "a context longer than the data": ("context = 16", "context = 100000"),
    "an absurd context": ("context = 16", "context = 9223372036854775807"),
    "an unknown optimizer": ("learning_rate = 1e-2", "name = 'sgd'"),
    "a learning rate of infinity": ("learning_rate = 1e-2", "learning_rate = inf"),
    "a learning rate below zero": ("learning_rate = 1e-2", "learning_rate = -1.0"),
    "a learning rate that is no number": ("learning_rate = 1e-2", "learning_rate = nan"),
    "no budget": ("steps = 24", ""),
    "a budget below zero": ("steps = 24", "steps = -1"),
    "no batch": ("batch_size = 4", "batch_size = 0"),
    "an absurd batch": ("batch_size = 4", "batch_size = 9223372036854775807"),
    "an unknown precision": ('precision = "float32"', 'precision = "float8"'),
    "an unknown device": ('device = "cpu"', 'device = "abacus"'),
    "keep nothing": ("checkpoint_every = 6", "keep = 0"),
}


@pytest.mark.parametrize("name", RECIPES)
def test_recipes(work, capsys, tiny_recipe, name):
    """TOML that is none, and settings that no run can have."""
    change = RECIPES[name]
    content = change
    if isinstance(change, tuple):
        text = tiny_recipe.format(data=(work / "text.txt").as_posix())
        assert change[0] in text
        content = text.replace(*change, 1).encode()
    (work / "bad.toml").write_bytes(content)
    refuse(capsys, work, ["train", "bad.toml"])


def test_a_recipe_that_would_never_end(work, capsys):
    """A FIFO, a folder or a device is refused, not waited for."""
    os.mkfifo(work / "pipe.toml")
    for name in ("pipe.toml", "/dev/zero", str(work)):
        refuse(capsys, work, ["train", name])


# -- runs and their checkpoints -------------------------------------------------------------------


def checkpoint(run):
    """The newest checkpoint of a run."""
    return checkpoints.checkpoints(run / "checkpoints")[-1]


def only(run, change):
    """Change the newest checkpoint, and leave no other to fall back on."""
    last = checkpoint(run)
    for other in checkpoints.checkpoints(run / "checkpoints")[:-1]:
        shutil.rmtree(other)
    change(last)


def seal(folder, change):
    """Change files of a checkpoint, and its manifest so that it looks whole."""
    change(folder)
    names = json.loads((folder / "manifest.json").read_text())
    manifest = {name: fingerprint(folder / name) for name in names}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def weights(folder, change):
    path = folder / "model.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path, {"format": "pt"})


def first(state):
    return next(iter(state))


DEEP = "[" * 100_000
CONFIGS = ["", "[]", "3", "null", '"x"', "{", DEEP, "{}", '{"task": "bytes"}', '{"model": 3}']
CONFIGS += ['{"model": {"name": []}}', '{"model": {"name": "TransformerLM"}, "data": []}']
CONFIGS += ['{"model": {"name": "TransformerLM", "dim": NaN}}', "\ufeff\ufeff{}"]


@pytest.mark.parametrize("command", ["evaluate", "generate"])
@pytest.mark.parametrize("content", CONFIGS, ids=range(len(CONFIGS)))
def test_settings_of_a_run(work, capsys, content, command):
    """A config.json that is no JSON, or JSON of another shape."""
    (work / "text-run" / "config.json").write_text(content)
    refuse(capsys, work, [command, "text-run"])


RUNS = {
    "no checkpoints": lambda run: shutil.rmtree(run / "checkpoints"),
    "weights cut": lambda run: only(run, lambda f: os.truncate(f / "model.safetensors", 99)),
    "weights of a byte more": lambda run: only(
        run, lambda f: os.truncate(f / "model.safetensors", 1 << 20)
    ),
    "no weights": lambda run: only(run, lambda f: (f / "model.safetensors").unlink()),
    "no manifest": lambda run: only(run, lambda f: (f / "manifest.json").unlink()),
    "a manifest of a list": lambda run: only(
        run, lambda f: (f / "manifest.json").write_text("[]")
    ),
    "a manifest of nothing": lambda run: only(
        run, lambda f: (f / "manifest.json").write_text("{}")
    ),
    "a manifest that is a FIFO": lambda run: only(
        run, lambda f: ((f / "manifest.json").unlink(), os.mkfifo(f / "manifest.json"))
    ),
    "weights that are text": lambda run: only(
        run, lambda f: seal(f, lambda g: (g / "model.safetensors").write_bytes(b"no weights"))
    ),
    "weights with an absurd header": lambda run: only(
        run, lambda f: seal(f, lambda g: (g / "model.safetensors").write_bytes(b"\xff" * 64))
    ),
    "weights of NaN": lambda run: only(
        run, lambda f: seal(f, lambda g: weights(g, lambda s: s[first(s)].fill_(float("nan"))))
    ),
    "weights of infinity": lambda run: only(
        run, lambda f: seal(f, lambda g: weights(g, lambda s: s[first(s)].fill_(float("inf"))))
    ),
    "a weight is missing": lambda run: only(
        run, lambda f: seal(f, lambda g: weights(g, lambda s: s.pop(first(s))))
    ),
    "a weight of another shape": lambda run: only(
        run,
        lambda f: seal(f, lambda g: weights(g, lambda s: s.update({first(s): s[first(s)][:1]}))),
    ),
    "a config.json that is a FIFO": lambda run: (
        (run / "config.json").unlink(),
        os.mkfifo(run / "config.json"),
    ),
    "a config.json that is a folder": lambda run: (
        (run / "config.json").unlink(),
        (run / "config.json").mkdir(),
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_runs(work, capsys, name):
    """Checkpoints that are damaged, gone, of another shape, or full of NaN."""
    RUNS[name](work / "text-run")
    refuse(capsys, work, ["evaluate", "text-run"])
    refuse(capsys, work, ["generate", "text-run"])


@pytest.mark.parametrize("content", ["", "{}", "3", '{"a": 1}', "[1]", "[]", DEEP, "\x00"])
def test_classes_of_a_run(work, capsys, content):
    """A classes.json that does not name the classes of the model."""
    (work / "pictures-run" / "classes.json").write_text(content)
    refuse(capsys, work, ["evaluate", "pictures-run"])
    refuse(capsys, work, ["predict", "pictures-run", "good.png"])


@pytest.mark.parametrize("name", ["result.json", "samples.json", "evaluation.json"])
@pytest.mark.parametrize("content", ["", "[3]", "3", '{"facts": 3}', DEEP])
def test_results_of_a_run(work, capsys, name, content):
    """A report cannot be made of files that something else has written."""
    (work / "text-run" / name).write_text(content)
    (work / "text-run" / "report.html").unlink()
    before = tree(work)
    assert main(["report", "text-run"]) in (0, 2)
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    assert len(said.err.splitlines()) <= 1
    if not (work / "text-run" / "report.html").exists():
        assert {name for name in tree(work) if "partial" in name} == set()
    assert before.keys() <= tree(work).keys()


# -- surroundings ---------------------------------------------------------------------------------


def test_runs_is_a_file(work, capsys):
    """Where the folder of runs would be lies something else."""
    (work / "runs").write_text("")
    refuse(capsys, work, ["evaluate", "latest"])
    refuse(capsys, work, ["train", "text.toml"])


@pytest.mark.parametrize("value", ["natve", "dense,tiled", " "])
def test_an_implementation_that_there_is_not(work, capsys, monkeypatch, value):
    """FOVEAL_IMPL of a name that is none."""
    monkeypatch.setenv("FOVEAL_IMPL", value)
    refuse(capsys, work, ["evaluate", "text-run"])


LAUNCHES = [
    {"WORLD_SIZE": "abc"},
    {"WORLD_SIZE": ""},
    {"WORLD_SIZE": "2", "RANK": "x"},
    {"WORLD_SIZE": "-2", "RANK": "0"},
    {"WORLD_SIZE": "2", "RANK": "5"},
    {"LOCAL_RANK": "cuda:0"},
    {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "http"},
]


@pytest.mark.parametrize("launch", LAUNCHES, ids=str)
def test_launchers_that_are_wrong(work, capsys, monkeypatch, launch):
    """What a launcher should have said is named, before anything is done."""
    for name, value in launch.items():
        monkeypatch.setenv(name, value)
    for command in (["evaluate", "text-run"], ["train", "text.toml"]):
        said = refuse(capsys, work, command)
        assert any(f"{name}={value}" in said.replace("'", "") for name, value in launch.items())
        assert "torchrun" in said


def test_output_that_cannot_be_written(work, capsys):
    """A full device, a folder, a file as a folder."""
    for output in ("/dev/full", str(work), str(work / "good.png" / "x.png")):
        refuse(capsys, work, ["draw", "Full()", "--output", output])


def test_there_are_many():
    """What the tables above hold; those of data are in test_malformed_data."""
    tables = (TYPED, RECIPES, RUNS, CONFIGS)
    assert sum(map(len, tables)) >= 150
