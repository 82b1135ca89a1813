"""What every test may ask for."""

from __future__ import annotations

import atexit
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import peers
import pytest
from _pytest.runner import runtestprotocol


@pytest.fixture
def peer() -> Callable[[str], ModuleType]:
    """``peer("vit_pytorch.sep_vit")``: that module of a public package, or the test is skipped."""

    def load(name: str) -> ModuleType:
        try:
            return peers.peer(name)
        except ModuleNotFoundError as error:
            pytest.skip(f"{error} (pip install --no-deps -r peers.txt)")

    return load


@pytest.fixture(autouse=bool(os.environ.get("FOVEAL_DETERMINISTIC")))
def deterministic() -> Iterator[None]:
    """With FOVEAL_DETERMINISTIC=1 the whole suite runs under torch's deterministic algorithms."""
    import torch  # not above: the process that hands out the tests needs no torch

    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session", autouse=True)
def seeds_of_what_is_here() -> Iterator[None]:
    """A seed is not kept for accelerators that are missing: torch notes who calls, each time."""
    import torch

    with pytest.MonkeyPatch.context() as patch:
        for accelerator in (torch.cuda, torch.xpu, torch.mtia):
            if not accelerator.is_available():
                patch.setattr(accelerator, "manual_seed_all", lambda seed: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def compiled_without_asking() -> Iterator[None]:
    """torch.compile measures its guards for a line of its log, and collects garbage: not here.

    Both take longer than many a graph, and change nothing of it. Where nothing that was collected
    has loaded the compiler, it stays unloaded.
    """
    if "torch._dynamo" not in sys.modules:
        yield
        return
    import torch._dynamo.guards

    with pytest.MonkeyPatch.context() as patch:
        measured = "profile_guard_manager"  # a name of torch's own, which may go
        patch.setattr(torch._dynamo.guards, measured, lambda *guards: 0.0, raising=False)
        patch.setattr(torch._dynamo.config, "run_gc_after_compile", False)
        yield


@pytest.fixture
def nothing_kept() -> Iterator[None]:
    """For graphs over sizes that are symbols: what operators give of them is asked each time.

    torch would look it up by all that is known of the symbols, which takes several times as long
    and gives the same.
    """
    import torch._dynamo

    with torch._dynamo.config.patch(fake_tensor_cache_enabled=False):
        yield


@pytest.fixture
def unforced(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of the choice itself: FOVEAL_IMPL does not make it."""
    monkeypatch.delenv("FOVEAL_IMPL", raising=False)


def pytest_collection_finish() -> None:
    """What was loaded and collected stays: the garbage collector need not walk it at each turn.

    And its turns come seldom, for what compilers keep in a process is much to walk.
    """
    gc.collect()
    gc.freeze()
    gc.enable()
    gc.set_threshold(10_000, 20, 50)


# ... until the process ends, when C++ libraries look whether anything was left
atexit.register(gc.unfreeze)


# -- many processes: pytest -n 2 ------------------------------------------------------------------


def pytest_configure(config: pytest.Config) -> None:
    """Every other worker collects from the end: what one has prepared, the other reads.

    The asserts of a file are rewritten, and its byte code is kept, by whoever comes there first.
    """
    gc.disable()  # until all is loaded and collected, of which nothing is garbage
    if not _is_worker(config):
        return
    # called after all that libraries register; to take torch apart for seconds serves nobody
    atexit.register(os._exit, 0)
    odd = config.workerinput["workerid"].endswith(tuple("13579"))
    if odd and config.args_source is config.ArgsSource.TESTPATHS:
        paths = [path for room in config.args for path in Path(room).iterdir()]
        rooms = [path for path in paths if path.is_dir() and path.name[0] not in "._"]
        files = [path for path in paths if path.match("test_*.py")]
        config.args[:] = sorted(map(str, rooms + files), reverse=True)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """... into the same order."""
    if _is_worker(config):
        items.sort(key=lambda item: item.path.parts)


def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """A worker tells what became of a test, and not that it starts, is prepared and cleared away.

    Unless that fails, or somebody asks for all durations: messages are most of what a short test
    costs.
    """
    if not _is_worker(item.config) or item.config.getoption("durations") is not None:
        return None
    for report in runtestprotocol(item, log=False, nextitem=nextitem):
        if report.when == "call" or not report.passed:
            item.ihook.pytest_runtest_logreport(report=report)
    return True


def _is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


# -- the kernel of another processor: pytest tests/ops --emulate avx512 -------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    from emulated import CLASSES

    parser.addoption("--emulate", choices=CLASSES, help="run the kernel of another processor")


@pytest.fixture(scope="session", autouse=True)
def emulated(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """With --emulate the native kernel is that of another processor; the rest stays as it is."""
    wanted = request.config.getoption("--emulate")
    if not wanted:
        yield
        return
    from emulated.kernels import emulate

    with pytest.MonkeyPatch.context() as patch:
        remote = emulate(wanted, tmp_path_factory.mktemp("emulated"), patch)
        yield
    if remote is not None:
        print(f"\n{remote.calls} calls of the kernel for {wanted}, emulated")


@pytest.fixture
def at_hand(request: pytest.FixtureRequest) -> None:
    """For tests of how this processor gets its own kernel."""
    if request.config.getoption("--emulate"):
        pytest.skip("the kernel is another processor's")


# -- what an import costs, asked of processes of their own ----------------------------------------

FORKING = """
import gc, importlib, json, os, socket, sys, tempfile, traceback, torch

def serve(asked, answers):
    gc.collect()
    gc.freeze()  # a turn of the garbage collector would copy every page
    below = {}
    for line in asked:
        code, environment, also = json.loads(line)
        if not also:
            answer = run(code, environment)
        else:
            key = tuple(also)
            if key not in below:
                below[key] = prepared(also)
            below[key].write(json.dumps([code, environment, None]) + "\\n")
            below[key].flush()
            answer = json.loads(below[key].readline())
        print(json.dumps(answer), file=answers, flush=True)
    for one in below.values():
        one.close()
    for _ in below:
        os.wait()

def prepared(modules):
    ours, theirs = socket.socketpair()
    if os.fork():
        theirs.close()
        with ours:
            return ours.makefile("rw")
    ours.close()
    for name in modules:
        importlib.import_module(name)
    serve(theirs.makefile("r"), theirs.makefile("w"))
    os._exit(0)

def run(code, environment):
    files = [tempfile.TemporaryFile("w+", encoding="utf-8") for _ in range(2)]
    child = os.fork()
    if not child:
        status = 1
        try:
            for stream, file in enumerate(files, 1):
                os.dup2(file.fileno(), stream)
            if environment is not None:
                os.environ.clear()
                os.environ.update(environment)
            exec(code, {"__name__": "__main__"})
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return [status, *(file.seek(0) or file.read() for file in files)]

serve(sys.stdin, sys.stdout)
"""
"""A process that has imported torch, and nothing else: what each line asks is run in a fork of it,
or in a fork of such a fork that has imported more."""


@pytest.fixture(scope="session")
def after_torch() -> Iterator[Callable[..., str]]:
    """`after_torch(code, env)`: what it prints in a process that has just imported torch."""
    if not hasattr(os, "fork"):
        yield _fresh
        return
    with subprocess.Popen(
        [sys.executable, "-c", FORKING],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def ask(code: str, env: Mapping[str, str] | None = None, also: Sequence[str] = ()) -> str:
            process.stdin.write(json.dumps([code, env and dict(env), also]) + "\n")
            process.stdin.flush()
            status, out, err = json.loads(process.stdout.readline())
            assert status == 0, out + err
            return out

        yield ask


@pytest.fixture(scope="session")
def after_dynamo(after_torch: Callable[..., str]) -> Callable[..., str]:
    """The same in a process that has also imported what takes longest of the rest of torch."""
    return partial(after_torch, also=["torch._dynamo", "torch.distributed.fsdp", "torch.export"])


def _fresh(code: str, env: Mapping[str, str] | None = None, also: Sequence[str] = ()) -> str:
    command = [sys.executable, "-c", f"import torch\n{code}"]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout


# -- a recipe that trains in a second, for the tests of recipes and of the command ----------------

TINY = """# Tiny recipe: a model that trains in a second
#
task = "bytes"

[model]
name = "TransformerLM"
dim = 16
depth = 1
heads = 2
dim_head = 8
dropout = 0.1
pattern = {{ name = "SlidingWindow", window = 8, causal = true }}

[data]
path = "{data}"
context = 16

[optimizer]
learning_rate = 1e-2
warmup_steps = 5

[training]
steps = 24
batch_size = 4
precision = "float32"
device = "cpu"
log_every = 4
evaluate_every = 8
checkpoint_every = 6
"""


@pytest.fixture(scope="session")
def tiny_recipe() -> str:
    """The recipe's text, in which {data} stands for the path of its data."""
    return TINY


def _once(draw: Callable[..., Path], path_of: Callable[..., Path]) -> Callable[..., Path]:
    """A function that draws into a file; the same arguments are drawn once, and then copied."""
    drawn: dict[str, bytes] = {}

    def copy(*args: Any, **options: Any) -> Path:
        path = path_of(*args)
        key = repr(([x for x in args if x is not path], options))
        if key in drawn:
            path.write_bytes(drawn[key])
            return path
        made = draw(*args, **options)
        drawn[key] = made.read_bytes()
        return made

    return copy


@pytest.fixture(scope="session")
def short_reports() -> Iterator[None]:
    """Runs that take a second end soon: what one report has drawn, the others copy.

    And the samples of a model that has learnt nothing are three contexts long.
    """
    from foveal.recipes import charts, report
    from foveal.recipes.bytes import writing

    with pytest.MonkeyPatch.context() as patch:
        pattern = _once(report.draw_pattern, lambda pattern, length, path: path)
        patch.setattr(report, "draw_pattern", pattern)
        curves = _once(charts.draw_curves, lambda curves, path: path)
        patch.setattr(charts, "draw_curves", curves)
        patch.setattr(writing, "_SAMPLE_BYTES", 48)
        yield


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A small text that is easy to learn."""
    path = tmp_path / "text.txt"
    path.write_bytes(b"the quick brown fox jumps over the lazy dog. " * 60)
    return path


@pytest.fixture
def recipe(tmp_path: Path, text: Path) -> Path:
    """The path of the tiny recipe."""
    path = tmp_path / "tiny.toml"
    path.write_text(TINY.format(data=text.as_posix()), encoding="utf-8")
    return path


# -- what a file needs and is not here ------------------------------------------------------------


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Files that are skipped whole are no failure; it is said why they are."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    nothing = session.exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED
    if nothing and reporter is not None and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.OK
        reporter.reportchars += "s"
