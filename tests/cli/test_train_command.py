"""`foveal train`: going on with a run by what is printed, and recipes that make none."""

import json
import os
import shlex
import signal

import pytest

from foveal.cli import main
from foveal.recipes.bytes.kind import Bytes


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Commands run in an empty folder, and runs end without pictures and samples."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("foveal.recipes.run.write_run_report", lambda folder: None)
    monkeypatch.setattr("foveal.recipes.run.finish", lambda *details: None)


def foveal(capsys, *arguments):
    """Exit code, output, and the lines on stderr."""
    code = main(list(map(str, arguments)))
    captured = capsys.readouterr()
    return code, captured.out, captured.err.strip().splitlines()


def complaint(capsys, *arguments):
    """The one line of a command that must end with 2."""
    code, _, lines = foveal(capsys, *arguments)
    assert code == 2
    assert len(lines) == 1, lines
    assert lines[0].startswith("foveal: ")
    assert len(lines[0]) < 400
    return lines[0]


def interrupt_at(monkeypatch, step):
    """Send this process a Ctrl-C in the midst of a step."""
    loss, calls = Bytes.loss, []

    def signalling(self, task, model, batch):
        if model.training:
            calls.append(1)
            if len(calls) == step:
                os.kill(os.getpid(), signal.SIGINT)
        return loss(self, task, model, batch)

    monkeypatch.setattr(Bytes, "loss", signalling)


@pytest.mark.parametrize(
    "options",
    [
        ["--output", "a run; with $characters"],
        ["--model.dim", "32", "--training.batch-size", "5"],
        ["--optimizer.name", "muon", "--data.context", "8", "--seed", "7"],
        ["--model.pattern", "SlidingWindow(4)", "--model.depth", "2"],
    ],
)
def test_the_command_that_an_interrupt_prints_goes_on(
    recipe, tmp_path, capsys, monkeypatch, options
):
    """Typed as it stands, it ends with the weights of a run that was not interrupted."""
    whole = ["--output", "whole", *(options if "--output" not in options else ())]
    assert foveal(capsys, "train", recipe, *whole)[0] == 0
    interrupt_at(monkeypatch, 9)
    code, _, lines = foveal(capsys, "train", recipe, *options)
    assert code == 130
    command = lines[-1].partition("go on with: ")[2]
    words = shlex.split(command)
    assert words[:4] == ["python", "-m", "foveal.cli", "train"]
    recipe.rename(tmp_path / "moved.toml")  # its settings are in the run's folder
    code, out, lines = foveal(capsys, *words[3:])
    assert code == 0, lines
    assert "trained 24 steps" in out
    last = "checkpoints/step-00000024/model.safetensors"
    there = words[words.index("--output") + 1]
    assert (tmp_path / there / last).read_bytes() == (tmp_path / "whole" / last).read_bytes()


def test_a_run_goes_on_with_its_own_settings(recipe, tmp_path, capsys):
    """By --output, by --resume FOLDER, by the latest, and without the recipe's name."""
    options = ["--model.dim", "32", "--steps", "6"]
    assert foveal(capsys, "train", recipe, *options)[0] == 0
    folder = "runs/tiny-001"
    ways = [
        [recipe, "--output", folder, "--resume", "auto"],
        [recipe, "--resume", "auto"],
        [recipe, f"--resume={folder}"],
        [recipe, "--resume", folder, "--output", f"{folder}/../tiny-001"],
        ["--resume", folder],
    ]
    for steps, way in enumerate(ways, start=7):
        code, out, lines = foveal(capsys, "train", *way, "--steps", steps)
        assert code == 0, lines
        assert f"trained {steps} steps" in out
        assert "with the settings of its config.json" in out
    config = json.loads((tmp_path / folder / "config.json").read_text())
    assert config["model"]["dim"] == 32
    assert config["training"]["steps"] == steps
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["tiny-001"]


def test_the_same_command_goes_on(recipe, tmp_path, capsys):
    """Paths that are typed again as they were are those of the run, from the root on."""
    for name in ("mine.txt", "held.txt"):
        (tmp_path / name).write_bytes((tmp_path / "text.txt").read_bytes())
    start = ["train", recipe.name, "--data", "mine.txt", "--data.valid", "./held.txt"]
    for steps, rest in ((6, []), (8, ["--resume", "auto"]), (9, ["--resume", "runs/tiny-001"])):
        code, out, lines = foveal(capsys, *start, "--steps", steps, *rest)
        assert code == 0, lines
        assert f"trained {steps} steps" in out
    again = complaint(capsys, *start[:2], "--data", "held.txt", "--resume", "auto")
    assert "another data.path" in again


def test_options_that_cannot_change_are_named(recipe, capsys):
    """What was and what was asked for; nothing is written."""
    assert foveal(capsys, "train", recipe, "--output", "run", "--steps", "6")[0] == 0
    going_on = ["train", recipe, "--output", "run", "--resume", "auto"]
    for option, value, words in [
        ("--model.dim", "64", "another model.dim, 16, got 64"),
        ("--seed", "5", "another training.seed, 0, got 5"),
        ("--data", str(recipe), "another data.path"),
        ("--optimizer.name", "muon", "another optimizer.name, 'adamw', got 'muon'"),
    ]:
        assert words in complaint(capsys, *going_on, option, value)
    assert "trains the recipe" in complaint(
        capsys, "train", "bytes-hourglass", "--output", "run", "--resume", "auto"
    )
    assert "cannot be another one" in complaint(
        capsys, "train", recipe, "--output", "other", "--resume", "run"
    )
    assert "'nowhere' is not a run folder" in complaint(
        capsys, "train", recipe, "--resume", "nowhere"
    )
    assert "name the recipe first" in complaint(capsys, "train", "--resume", "auto")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "must name the model"),
        (b"task = ['bytes']", "unknown task ['bytes']"),
        (b"task = 3", "unknown task 3"),
        (b"model = 'TransformerLM'", "model must be a table"),
        (b"[[training]]\nsteps = 3", "training must be a table"),
        (b"[model]\nname = 5", "must name the model"),
        (b"[model]\nname = 'TransformerLM'\ndim = 2024-01-01", "dim in [model]"),
        (b"[model]\nname = 'TransformerLM'\ndropout = nan", "dropout in [model]"),
        (b"[model]\nname = 'TransformerLM'\ndim = 99999999999999999999", "must be a number below"),
        (b"training.steps = 1\n[model]\nname = 'TransformerLM'\ndim = 'wide'", "dim"),
        (b"training.steps = 1\n[model]\nname = 'TransformerLM'\ndim = {a = 1}", "dim"),
        (b"training.steps = 1\n[model]\nname = ':x'", "unknown model name ':x'"),
        (b"training.steps = 1\n[model]\nname = '..:x'", "cannot import"),
        (b"[training]\nsteps = " + b"9" * 5000, "not valid TOML"),
        (b"a = " + b"[" * 5000, "nested too deeply"),
        (b"\xff\xfet\x00a\x00", "is not UTF-8 text"),
        (b'task = "caf\xe9"', "is not UTF-8 text (byte 11 is 0xe9)"),
        (b"\x00\x01\x02", "not valid TOML"),
        (b"a = 1\na = 2", "not valid TOML"),
    ],
)
def test_recipes_that_make_no_run_are_one_line(recipe, tmp_path, capsys, content, words):
    """Encodings, other shapes, other types, absurd numbers: exit code 2, nothing written."""
    recipe.write_bytes(content)
    before = sorted(tmp_path.rglob("*"))
    assert words in complaint(capsys, "train", recipe)
    assert sorted(tmp_path.rglob("*")) == before


def test_recipes_that_are_no_files_are_one_line(tmp_path, capsys):
    """Folders, FIFOs, devices, loops, and files far too large are named at once."""
    os.mkfifo(tmp_path / "fifo.toml")
    (tmp_path / "loop.toml").symlink_to("loop.toml")
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "huge.toml").touch()
    os.truncate(tmp_path / "huge.toml", 1 << 40)
    for name, words in [
        ("fifo.toml", "must be a file, but it is no ordinary file"),
        ("/dev/zero", "must be a file, but it is no ordinary file"),
        ("folder.toml", "must be a file, but it is a folder"),
        ("loop.toml", "symbolic links"),
        ("huge.toml", "1,099,511,627,776 bytes"),
        ("x" * 5000 + ".toml", "recipe"),
        ("a\x00b.toml", "recipe"),
    ]:
        assert words in complaint(capsys, "train", name)


def test_byte_order_marks_are_no_content(recipe, capsys):
    """Editors of other systems write one in front of a recipe; a run's config.json may get one."""
    recipe.write_bytes(b"\xef\xbb\xbf" + recipe.read_bytes())
    assert foveal(capsys, "train", recipe, "--output", "run", "--steps", "6")[0] == 0
    path = recipe.parent / "run" / "config.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert foveal(capsys, "train", "--resume", "run", "--steps", "7")[0] == 0


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "config.json is not valid JSON"),
        (b"{", "config.json is not valid JSON"),
        (b"[]", "config.json must hold the settings of a run"),
        (b"null", "config.json must hold the settings of a run"),
        (b"[" * 99999, "config.json is not valid JSON: it is nested too deeply"),
        (b'{"task": "bytes", "model": null}', "model must be a table"),
        (b'{"task": {"a": 1}}', "unknown task {'a': 1}"),
        (b'{"model": {"name": "TransformerLM"}, "training": {"steps": NaN}}', "steps in"),
        (b'{"model": {"name": "TransformerLM", "dim": Infinity}}', "must be a finite number"),
        (b'{"model": {"name": "TransformerLM"}, "colour": 1}', "unknown key 'colour'"),
        (b"\xff\xfe{\x00}\x00", "is not UTF-8 text"),
    ],
)
def test_a_config_of_another_shape_is_one_line(tmp_path, capsys, content, words):
    """Whatever became of a run's config.json, it is named and nothing is changed."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json").write_bytes(content)
    for arguments in (["train", "--resume", "run"], ["evaluate", "run"]):
        assert words in complaint(capsys, *arguments)
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["config.json"]


@pytest.mark.parametrize(
    "options",
    [
        ["--training.batch-size", "2.5"],
        ["--training.batch-size", "true"],
        ["--training.batch-size", "-4"],
        ["--training.batch-size", "10000000000"],
        ["--steps", "1e3"],
        ["--steps", "99999999999999999999999"],
        ["--time-budget", "nan", "--steps", "None"],
        ["--time-budget", "inf"],
        ["--time-budget", "-1"],
        ["--time-budget", "0"],
        ["--time-budget", "soon"],
        ["--training.compile", "maybe"],
        ["--training.precision", "float16"],
        ["--model.dim", "1e9999"],
        ["--model.dim", "{1, 2}"],
        ["--model.dim", "10000000"],
        ["--model.dim", "0"],
        ["--model.dropout", "2.0"],
        ["--optimizer.beta1", "1.5"],
        ["--optimizer.learning-rate", "inf"],
        ["--data.context", "-1"],
        ["--data", ""],
        ["--output", "TAKEN"],
        ["--output", ""],
        ["--resume", ""],
    ],
)
def test_options_that_make_no_run_are_one_line(recipe, tmp_path, capsys, options):
    """Types, signs, sizes and words that do not fit: exit code 2, nothing written."""
    (tmp_path / "taken").write_text("x")
    before = sorted(tmp_path.rglob("*"))
    options = [str(tmp_path / "taken") if word == "TAKEN" else word for word in options]
    complaint(capsys, "train", recipe, *options)
    assert sorted(tmp_path.rglob("*")) == before
