"""The foveal command: what it prints, and how it answers to mistakes."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, wait

import pytest

from foveal.cli import main
from foveal.recipes.config import recipe_names


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Commands run in an empty folder."""
    monkeypatch.chdir(tmp_path)


def complaint(capsys, *arguments):
    """The one line on stderr of a command that must fail with exit code 2."""
    assert main(list(map(str, arguments))) == 2
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("foveal: ")
    assert "Traceback" not in captured.err
    return lines[0]


@pytest.fixture
def brief(monkeypatch):
    """No report is drawn after each command, which takes most of its time."""
    for room in ("run", "score", "bytes.writing"):
        monkeypatch.setattr(f"foveal.recipes.{room}.write_run_report", lambda folder: None)


def test_a_run_from_end_to_end(recipe, capsys, tmp_path):
    """train, evaluate, generate, report: each prints what it promises."""
    assert main(["train", str(recipe), "--output", "run"]) == 0
    printed = capsys.readouterr().out
    assert "held out: bits_per_byte" in printed
    assert "report     run/report.html" in printed
    assert main(["evaluate", "run"]) == 0
    printed = capsys.readouterr().out
    for words in ("this model", "gzip -9", "xz -9e", "checksum", "from a cold start"):
        assert words in printed
    assert main(["evaluate", "run", "--stride", "4"]) == 0
    assert "sliding by 4: each byte sees 12 or more" in capsys.readouterr().out
    assert main(["generate", "run", "--prompt", "the ", "--length", "30", "--seed", "1"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("the ")
    assert "30 tokens in" in printed
    assert "tokens/s]" in printed
    assert main(["report", "run"]) == 0
    paths = [line.split()[-1] for line in capsys.readouterr().out.splitlines()]
    assert len(paths) == 4
    assert all(os.path.getsize(path) > 1000 for path in paths)
    assert main(["report", "run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [found["report"], *found["pictures"]] == paths


@pytest.mark.usefixtures("brief")
def test_overrides_reach_the_run(recipe, capsys):
    """Any setting of the recipe can be changed, --data and --steps by their short names too."""
    other = recipe.with_name("other.txt")
    other.write_bytes(b"abc" * 500)
    arguments = ["--data", str(other), "--steps", "3", "--optimizer.learning-rate", "0.5"]
    model = ["--model.depth", "2", "--model.pattern", "SlidingWindow(4)"]
    assert main(["train", str(recipe), "--output", "run", *arguments, *model]) == 0
    config = json.loads((recipe.parent / "run" / "config.json").read_text())
    assert config["data"]["path"] == str(other)
    assert config["training"]["steps"] == 3
    assert config["optimizer"]["learning_rate"] == 0.5
    assert config["model"]["depth"] == 2
    assert config["model"]["pattern"] == "SlidingWindow(4)"
    assert config["model"]["dropout"] == 0.1
    assert "kv_heads" not in config["model"]


@pytest.mark.usefixtures("brief")
def test_a_run_resumes_by_the_command(recipe, capsys):
    """--resume auto starts fresh where there is nothing, and goes on where there is something."""
    for steps in (10, 20):
        arguments = ["--output", "run", "--resume", "auto", "--steps", str(steps)]
        assert main(["train", str(recipe), *arguments]) == 0
        assert f"trained {steps} steps" in capsys.readouterr().out
    assert "already holds a run" in complaint(capsys, "train", recipe, "--output", "run")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], "did you mean 'train'?"),
        (["train"], "name the recipe first"),
        (["train", "bytes-hourglas"], "unknown recipe 'bytes-hourglas'; did you mean"),
        (["train", "missing.toml"], "recipe file must exist, got recipe='missing.toml'"),
        (["train", "RECIPE", "--data", "missing.txt"], "must exist, got path='missing.txt'"),
        (["train", "RECIPE", "--data", "*.none"], "no file matches"),
        (["train", "RECIPE", "--data", "EMPTY"], "file is empty"),
        (["train", "RECIPE", "--data", "."], "but context=4000 needs"),
        (["train", "RECIPE", "--model.heads", "3", "--model.dim-head", "None"], "heads=3"),
        (["train", "RECIPE", "--model.pattern", "SlidingWindo(3)"], "SlidingWindow"),
        (["train", "RECIPE", "--stpes", "3"], "unknown option --stpes; did you mean --steps?"),
        (["train", "RECIPE", "--steps", "many"], "must be a whole number, got 'many'"),
        (["train", "RECIPE", "--steps", "0"], "training.steps must be at least 1, got 0"),
        (["train", "RECIPE", "--output", "RECIPE"], "is a file"),
        (["evaluate", "nowhere"], "run='nowhere' is not a run folder"),
        (["evaluate", "latest"], "no run under runs"),
        (["generate", "latest"], "no run under runs"),
        (["draw", "SlidingWindo(8)"], "SlidingWindow"),
        (["draw", "SlidingWindow(window=0)"], "window"),
        (["draw", "__import__('os').system('true')"], "pattern"),
        (["draw", "Full()", "--output", "no/where.png"], "folder of output"),
        (["draw", "Full()", "--length", "0"], "length"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(recipe, capsys, arguments, words, tmp_path):
    """Each mistake names the value and the fix, without traceback, and writes nothing."""
    (tmp_path / "empty").write_bytes(b"")
    if "context" in words:
        recipe.write_text(recipe.read_text().replace("context = 16", "context = 4000"))
    known = {"RECIPE": str(recipe), "EMPTY": str(tmp_path / "empty")}
    before = sorted(tmp_path.rglob("*"))
    assert words in complaint(capsys, *(known.get(word, word) for word in arguments))
    assert sorted(tmp_path.rglob("*")) == before


def test_a_misspelt_key_in_a_recipe_is_one_line(recipe, capsys):
    """The key, the recipe and the nearest key."""
    recipe.write_text(recipe.read_text().replace("batch_size", "batchsize"))
    line = complaint(capsys, "train", recipe)
    assert "'batchsize' in [training] of recipe" in line
    assert "tiny.toml; did you mean 'batch_size'?" in line


@pytest.mark.usefixtures("brief")
def test_nonsense_and_truncated_checkpoints_are_one_line(recipe, capsys, tmp_path):
    """What can only go wrong with a run there is one line as well."""
    assert main(["train", str(recipe), "--output", "run", "--training.keep", "1"]) == 0
    capsys.readouterr()
    line = complaint(capsys, "generate", "run", "--prompt", "x", "--temperature", "-1")
    assert "temperature" in line
    weights = tmp_path / "run/checkpoints/step-00000024/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    assert main(["evaluate", "run"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith("foveal: ") for line in lines)
    assert "model.safetensors is truncated" in lines[-1]


@pytest.mark.usefixtures("brief")
def test_generate_takes_any_prompt(recipe, capsys, tmp_path, monkeypatch):
    """None, one from a file, one of bytes that are no text, and one longer than the context."""
    assert main(["train", str(recipe), "--output", "run", "--steps", "3"]) == 0
    short = ["--length", "8", "--seed", "3"]
    capsys.readouterr()
    assert main(["generate", "run", *short]) == 0
    assert "8 tokens in" in capsys.readouterr().out
    for given in (b"the quick brown fox jumps over the lazy dog ", b"", b"\xff\xfe\x00", b"a"):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(given)))
        assert main(["generate", "run", "--prompt", "-", *short]) == 0
        assert capsys.readouterr().out.startswith(given.decode(errors="replace"))
    found = []
    for prompt in ("x" * 100 + "the quick brown fox ", "y" * 7 + "the quick brown fox "):
        assert main(["generate", "run", "--prompt", prompt, "--json", *short]) == 0
        found.append(json.loads(capsys.readouterr().out)["text"])
    assert found[0] == found[1]  # of a long prompt it sees the end
    assert main(["generate", "run", "--prompt", "caf\udcc3\udca9", *short]) == 0
    assert capsys.readouterr().out.startswith("caf\u00e9")


@pytest.mark.usefixtures("brief")
def test_data_in_the_place_of_a_recipe(recipe, capsys):
    """The message names the command that was meant, and that command is right."""
    assert main(["train", str(recipe), "--output", "run", "--steps", "3"]) == 0
    capsys.readouterr()
    for typed, meant in {
        "book.txt": "foveal train bytes-transformer --data book.txt",
        "my book.txt": "foveal train bytes-transformer --data 'my book.txt'",
        "pictures": "foveal train images-halonet --data pictures",
        "run": "foveal train --resume run",
    }.items():
        path = recipe.with_name(typed)
        if typed == "pictures":
            path.mkdir()
        elif typed != "run":
            path.write_text("some words")
        assert complaint(capsys, "train", typed).endswith(meant)
    assert main(["train", "--resume", "run"]) == 0


def test_the_list_says_which_data_a_recipe_takes(capsys):
    """Every recipe but those of fixed benchmarks is named beside the data of one's own."""
    assert main(["list"]) == 0
    lines = [one for one in capsys.readouterr().out.splitlines() if "Your own:" in one]
    assert "--data FOLDER of pictures, for images-halonet" in lines[1]
    named = " ".join(lines)
    assert all(name in named for name in recipe_names() if not name.startswith("lra-"))


def test_json_is_all_that_is_printed(recipe, capsys, tmp_path):
    """evaluate, list and bench give objects whose keys stay, and nothing else."""
    assert main(["train", str(recipe), "--output", "run", "--steps", "3"]) == 0
    capsys.readouterr()
    assert main(["evaluate", "run", "--json"]) == 0
    score = json.loads(capsys.readouterr().out)
    assert {"bits_per_byte", "gzip", "xz", "bytes", "context", "stride", "data"} <= score.keys()
    assert {"checksum", "seconds", "checkpoint"} <= score.keys()
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text()) == score
    assert main(["list", "--json"]) == 0
    there = json.loads(capsys.readouterr().out)
    assert set(there) == {"recipes", "patterns", "models"}
    assert "SlidingWindow" in there["patterns"]
    assert main(["bench", "--list-cases", "--json"]) == 0
    assert "window-8192" in json.loads(capsys.readouterr().out)


@pytest.mark.usefixtures("brief")
def test_evaluate_scores_all_or_a_sample_that_it_names(recipe, capsys, tmp_path):
    """Other data are scored whole; many data by pieces spread over them; --full scores all."""
    assert main(["train", str(recipe), "--output", "run", "--steps", "3"]) == 0
    other = tmp_path / "other.txt"
    other.write_bytes(b"0123456789abcdef" * 640)
    capsys.readouterr()
    for options, count in (([], 10240), (["--max-bytes", "999"], 999), (["--full"], 10240)):
        assert main(["evaluate", "run", "--data", str(other), "--json", *options]) == 0
        score = json.loads(capsys.readouterr().out)
        assert score["bytes"] == count
        assert ("a sample of 999 of 10,240 bytes" in score["data"]) == (count == 999)


def test_a_run_is_evaluated_from_anywhere_on_any_device_there_is(
    recipe, capsys, tmp_path, monkeypatch
):
    """Paths do not depend on where the command is typed; a device that is not there is named."""
    relative = recipe.read_text().replace(str(tmp_path) + "/", "")
    recipe.write_text(relative)
    assert main(["train", recipe.name, "--output", "run", "--steps", "3", "--device", "cpu"]) == 0
    (tmp_path / "else").mkdir()
    monkeypatch.chdir(tmp_path / "else")
    assert main(["evaluate", "../run", "--device", "cpu"]) == 0
    assert "device='cuda:77' is not on this machine, which has cpu" in complaint(
        capsys, "evaluate", "../run", "--device", "cuda:77"
    )


def test_a_fault_of_ours_keeps_its_traceback_and_says_so(monkeypatch):
    """What no input explains is raised, with the command to report."""

    def broken(*_):
        raise AttributeError("'NoneType' object has no attribute 'x'")

    monkeypatch.setattr("foveal.cli.listing._table", broken)
    with pytest.raises(AttributeError) as caught:
        main(["list"])
    (note,) = caught.value.__notes__
    assert "fault of foveal" in note
    assert "foveal list" in note


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "needs more memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "more memory"),
        (RuntimeError("[a/gloo/transport/tcp/pair.cc:5] Connection closed"), "another process"),
        (RuntimeError("[b/gloo/transport/tcp/pair.cc:7] Read error: reset"), "another process"),
        (type("DistBackendError", (RuntimeError,), {})("gone"), "another process"),
        (RecursionError("maximum depth"), "nested too deeply"),
        (OverflowError("int too large to convert"), "too large"),
        (FileNotFoundError(2, "No such file or directory", "a.txt"), "a.txt: no such file"),
        (OSError(28, "No space left on device"), "no space left on device"),
        (ModuleNotFoundError(name="tokenizers"), "pip install 'foveal[data]'"),
        (ModuleNotFoundError(name="matplotlib.figure"), "pip install 'foveal[draw]'"),
        (ModuleNotFoundError(name="datasets"), "pip install datasets"),
        (ValueError("x" * 5000), " ... "),
    ],
)
def test_what_a_user_can_mend_is_one_line(monkeypatch, capsys, error, words):
    """Memory, depth, size, files and packages, whatever part of the program notices."""

    def broken(*_):
        raise error

    monkeypatch.setattr("foveal.cli.listing._table", broken)
    monkeypatch.setattr("foveal.cli._drop_output", lambda: None)
    assert words in complaint(capsys, "list")


def test_the_command_starts_without_torch():
    """Help, version, typing errors and the help of every command load neither torch nor NumPy."""
    code = """
import sys
from foveal.cli import COMMANDS, main
for line in ["--help", "--version", "trian", *(f"{name} --help" for name in COMMANDS),
             "draw attention --help", "draw picture --help", "evaluate latest --contxt 3"]:
    try:
        main(line.split())
    except SystemExit:
        pass
print({"torch", "numpy"} & set(sys.modules))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "set()"


def test_help_and_version(capsys):
    """Every command explains itself and ends with 0."""
    assert main(["--help"]) == 0
    assert "foveal COMMAND" in capsys.readouterr().out
    assert main([]) == 2
    for command in ("train", "list"):
        with pytest.raises(SystemExit) if command == "list" else _nothing() as stop:
            main([command, "--help"])
        assert stop is None or stop.value.code == 0
        assert "usage: foveal" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["train", "bytes-transformer", "--help"])
    printed = capsys.readouterr().out
    for option in ("--data", "--output", "--resume", "--model.dim", "--training.batch-size"):
        assert option in printed


@pytest.mark.parametrize("columns", ["1", "3", "0", "-5", "many"])
def test_help_ends_in_any_terminal(capsys, monkeypatch, columns):
    """Of few columns, of none, of what is no number; the variable stays as it was."""
    monkeypatch.setenv("COLUMNS", columns)
    with pytest.raises(SystemExit):
        main(["list", "--help"])
    assert "usage: foveal list" in capsys.readouterr().out
    assert os.environ["COLUMNS"] == columns


@pytest.mark.parametrize("closed", [["stdout"], ["stderr"], ["stdin", "stdout", "stderr"]])
def test_whoever_closed_the_output_hears_nothing(monkeypatch, tmp_path, closed):
    """A command started with >&- does its work; Python has no such stream then."""
    with monkeypatch.context() as patch:
        for name in closed:
            patch.setattr(sys, name, None)
        codes = [main(["draw", "Full()"]), main(["list"]), main(["evaluate", "nowhere"])]
        held = [getattr(sys, name) for name in closed]
    for stream in held:
        stream.close()
    assert codes == [0, 0, 2]
    assert (tmp_path / "full.png").read_bytes().startswith(b"\x89PNG")


def _nothing():
    import contextlib

    return contextlib.nullcontext()


def test_list_shows_recipes_patterns_and_models(capsys):
    """What can be named elsewhere is listed with a line each."""
    assert main(["list"]) == 0
    printed = capsys.readouterr().out
    for name in ("bytes-hourglass", "SlidingWindow", "HourglassTransformerLM"):
        assert name in printed


def test_draw_writes_a_picture_and_prints_its_path(capsys, tmp_path):
    """The file is named after the pattern unless told otherwise."""
    assert main(["draw", "SlidingWindow(window=8)", "--length", "32"]) == 0
    path = capsys.readouterr().out.strip()
    assert path == "slidingwindow-window-8.png"
    assert (tmp_path / path).read_bytes().startswith(b"\x89PNG")


def test_help_is_quick_because_it_imports_little():
    """The command itself loads neither Accelerate nor matplotlib nor tyro."""
    code = (
        "import sys; from foveal.cli import main; main(['--help']);"
        "print(sorted({'accelerate', 'matplotlib', 'tyro', 'rich', 'numpy.random'} "
        "& set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = run.stdout.splitlines()[-1]
    assert "accelerate" not in loaded
    assert "matplotlib" not in loaded
    assert "tyro" not in loaded


TYPED = """
import os, runpy, sys
os.chdir(FOLDER)
os.dup2(1, 2)
with open("process", "w") as file:
    print(os.getpid(), file=file)
sys.argv = ["foveal", *ARGUMENTS]
try:
    runpy.run_module("foveal.cli", run_name="__main__")
except SystemExit as end:
    print("exit code", end.code)
"""
"""`python -m foveal.cli ARGUMENTS`: it leaves its number, and tells its exit code last."""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_ctrl_c_saves_and_exits_with_130(recipe, tmp_path, after_dynamo):
    """The first Ctrl-C ends the run in good order and says how to go on."""
    arguments = ["train", str(recipe), "--output", "run", "--steps", "1000000"]
    code = TYPED.replace("FOLDER", repr(str(tmp_path))).replace("ARGUMENTS", repr(arguments))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    with ThreadPoolExecutor() as pool:
        said = pool.submit(after_dynamo, code, environment)
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("run/checkpoints/step-*")) and not said.done():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process = int((tmp_path / "process").read_text())
        os.kill(process, signal.SIGINT)
        if not wait([said], 60).done:
            os.kill(process, signal.SIGKILL)
        err = said.result()
    assert err.splitlines()[-1] == "exit code 130", err
    assert "--resume auto" in err
    assert "Traceback" not in err
    step = int(err.split("interrupted at step ")[1].split(";")[0].replace(",", ""))
    assert (tmp_path / f"run/checkpoints/step-{step:08d}").is_dir()
