"""The library of the kernel: damaged, foreign, wrong, nowhere to keep; classes of processors."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import threading
from pathlib import Path

import pytest
import torch

import foveal
from foveal import patterns as P
from foveal.common import processor
from foveal.common.locks import FileLock
from foveal.ops import known, native
from foveal.ops.native import build, flags

PATTERN = P.SlidingWindow(8)
COMPILER = shutil.which("c++")

pytestmark = [
    pytest.mark.usefixtures("unforced", "at_hand"),
    pytest.mark.skipif(COMPILER is None, reason="no compiler"),
]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with one whole library, of this processor's class: the one that tests run on."""
    folder = tmp_path_factory.mktemp("built")
    with pytest.MonkeyPatch.context() as patch:
        forget(patch, folder)
        build.library()
    kept = (path for place in build._folders() for path in build._kept(place, build.level()))
    shutil.copy2(next(kept), folder)
    return folder


def forget(patch: pytest.MonkeyPatch, nowhere: Path) -> None:
    """Nothing is loaded, nothing has failed, and no wheel has brought a library."""
    for name in ("_loaded", "_failure"):
        patch.setattr(build, name, {})
    patch.setattr(build, "BUILT", nowhere / "no-wheel")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of its own, nothing loaded or shipped, and a compiler that counts its calls."""
    monkeypatch.delenv("FOVEAL_NATIVE", raising=False)
    monkeypatch.setenv("FOVEAL_CACHE", str(tmp_path / "cache"))
    forget(monkeypatch, tmp_path)
    native.op._right.cache_clear()
    folder = tmp_path / "cache" / "native"
    folder.mkdir(parents=True)
    yield folder
    native.op._right.cache_clear()


def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """What CXX names: a shell script with the output in $out."""
    path = tmp_path / "c++-of-the-test"
    path.write_text(f"#!/bin/sh\nfor out; do :; done\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("CXX", str(path))


def attends() -> str:
    """The implementation that is told; the result is right in any case."""
    known.CALLS.clear()  # as in a new process
    torch.manual_seed(0)
    q = torch.randn(1, 2, 3000, 16)
    want = foveal.attend(q, q, q, PATTERN, impl="tiled")
    torch.testing.assert_close(foveal.attend(q, q, q, PATTERN), want, rtol=1e-4, atol=1e-5)
    return foveal.explain(PATTERN, 3000, heads=2, head_dim=16).impl


def damage_empty(path):
    path.write_bytes(b"")


def damage_half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damage_one_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def damage_text(path):
    path.write_text("this is no library")


def damage_folder(path):
    path.unlink()
    path.mkdir()


def damage_pipe(path):
    path.unlink()
    os.mkfifo(path)


def damage_unreadable(path):
    path.unlink()
    path.symlink_to(path)


@pytest.mark.parametrize(
    "damage",
    [
        damage_empty,
        damage_half,
        damage_one_bit,
        damage_text,
        damage_folder,
        damage_pipe,
        damage_unreadable,
    ],
    ids=lambda damage: damage.__name__.removeprefix("damage_"),
)
def test_a_damaged_library_is_passed_over(built, cache, monkeypatch, damage):
    """It is never mapped; without a compiler attend() takes plain PyTorch."""
    (whole,) = built.iterdir()
    damage(Path(shutil.copy(whole, cache)))
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert attends() == "tiled"


def test_a_damaged_library_is_built_again(built, cache, tmp_path, monkeypatch):
    """In its place, once, and found by the next process."""
    (whole,) = built.iterdir()
    damage_half(Path(shutil.copy(whole, cache)))
    compiler(tmp_path, monkeypatch, f'cp {whole} "$out"')
    assert attends() == "native"
    assert (cache / whole.name).read_bytes() == whole.read_bytes()


def test_who_waits_for_another_process_takes_what_it_built(built, cache, tmp_path, monkeypatch):
    """Processes that start together compile once."""
    (whole,) = built.iterdir()
    compiler(tmp_path, monkeypatch, f"touch {tmp_path}/called; exit 1")
    other = FileLock(cache.with_name(".building"))

    def end():
        shutil.copy(whole, tmp_path / "draft")
        os.replace(tmp_path / "draft", cache / whole.name)
        other.release()

    timer = threading.Timer(0.3, end)
    timer.start()
    assert attends() == "native"
    timer.join()
    assert not (tmp_path / "called").exists()


def test_a_library_that_cannot_be_loaded_is_built_again(built, cache, tmp_path, monkeypatch):
    """Whole, under its right name, but of another system."""
    (whole,) = built.iterdir()
    foreign = cache / "draft"
    foreign.write_bytes(b"\x7fELF" + bytes(60))
    key = whole.stem.rpartition("-")[0]
    foreign.rename(cache / flags.name_for(key, foreign))
    compiler(tmp_path, monkeypatch, f'cp {whole} "$out"')
    assert attends() == "native"


@pytest.mark.parametrize(
    "script",
    [
        "exit 0",
        'rm "$out"',
        'echo "int main() {}" > "$out"',
        'echo "int nothing;" | c++ -x c++ - -shared -fPIC -o "$out"',
        "printf '\\377\\376 no such flag' >&2; exit 1",
        "kill -9 $$",
        "exit 77",
    ],
    ids=["nothing", "removed", "source", "no-symbols", "bytes", "killed", "silent"],
)
def test_a_compiler_that_lies_leaves_plain_pytorch(cache, tmp_path, monkeypatch, script):
    """Nothing is left behind, and whoever insists on the kernel hears why."""
    compiler(tmp_path, monkeypatch, script)
    assert attends() == "tiled"
    assert not list(cache.iterdir())
    q = torch.randn(1, 1, 100, 8)
    with pytest.raises(ValueError, match=r"impl='native' cannot do this call: it could not be"):
        foveal.attend(q, q, q, PATTERN, impl="native")


def test_a_kernel_that_computes_something_else_is_not_used(cache, tmp_path, monkeypatch):
    """Compilers have been wrong: the self-check compares with plain PyTorch."""
    source = tmp_path / "wrong.cpp"
    source.write_text(
        'extern "C" { int foveal_forward(void*) { return 0; } '
        "int foveal_backward(void*) { return 0; } int foveal_step(void*) { return 0; } "
        "int foveal_width(void) { return 8; } }"
    )
    compiler(tmp_path, monkeypatch, f'c++ {source} -shared -fPIC -o "$out"')
    with pytest.warns(UserWarning, match="native kernel gives wrong results"):
        native.ready()
    assert attends() == "tiled"
    assert "self-check" in (native.why_not("cpu", torch.float32) or "")


@pytest.mark.parametrize("flag", flags.LEAN[1:])
def test_a_compiler_that_does_not_know_what_gcc_knows(built, cache, tmp_path, monkeypatch, flag):
    """It is told again in words that every one knows; whatever else it says ends it at once."""
    if build.level() not in flags.LEAN_CLASSES:
        pytest.skip("all compilers are told the same for this class")
    (whole,) = built.iterdir()
    refuse = f"echo \"clang: error: unknown argument: '{flag}'\" >&2; exit 1"
    told = tmp_path / "told"
    script = f'echo "$*" >> {told}\ncase "$*" in *" {flag} "*) {refuse};; esac\n'
    compiler(tmp_path, monkeypatch, f'{script}cp {whole} "$out"')
    assert attends() == "native"
    first, second = told.read_text().splitlines()
    assert all(f" {one} " in first for one in flags.LEAN)
    assert " -O3 " in second
    assert not any(f" {one} " in second for one in flags.LEAN)


def test_flags_of_a_class():
    """What was measured to lose nothing is compiled lean; wide vectors and others are not."""
    threads = flags.THREADING[0]
    for wanted in flags.CLASSES:
        lean, full = (flags.flags_for(wanted, threads, one) for one in (True, False))
        assert "-O3" in full
        assert ("-O3" in lean) == (wanted not in ("avx2", "generic"))
        assert set(full) - {"-O3"} <= set(lean)
        assert not flags.is_told_otherwise(wanted, b"error: unknown argument: '-fopenmp'")


def test_a_compiler_may_come_with_options(built, cache, tmp_path, monkeypatch):
    """CXX="ccache c++" is usual."""
    (whole,) = built.iterdir()
    script = tmp_path / "a compiler"
    script.write_text(f'#!/bin/sh\nfor out; do :; done\ncp {whole} "$out"\n')
    script.chmod(0o755)
    monkeypatch.setenv("CXX", f"env '{script}'")
    assert attends() == "native"
    monkeypatch.setenv("CXX", "c++ 'open")
    assert build._compiler() is None


def test_a_cache_that_cannot_be_written(built, tmp_path, monkeypatch):
    """The library goes to a private folder among the temporary files, where it is found again."""
    (whole,) = built.iterdir()
    (tmp_path / "home").write_text("a file where a folder belongs")
    (tmp_path / "tmp").mkdir()
    monkeypatch.delenv("FOVEAL_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home" / "below"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    forget(monkeypatch, tmp_path)
    compiler(tmp_path, monkeypatch, f'cp {whole} "$out"')
    assert attends() == "native"
    (kept,) = (tmp_path / "tmp").rglob("*.so")
    assert stat.S_IMODE(kept.parent.stat().st_mode) == 0o700
    monkeypatch.setattr(build, "_loaded", {})
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert attends() == "native"


def test_nowhere_to_keep_it(cache, monkeypatch):
    """No folder at all: plain PyTorch, and the reason."""
    monkeypatch.setattr(build, "cache_folders", lambda name: [])
    assert attends() == "tiled"
    assert "no folder" in (build.why_not() or "")


def test_a_place_that_nothing_may_run_from(cache, tmp_path, monkeypatch):
    """A home mounted noexec: nothing is compiled there, at no start of any process."""
    monkeypatch.setattr(os, "statvfs", lambda place: type("Mount", (), {"f_flag": os.ST_NOEXEC}))
    compiler(tmp_path, monkeypatch, f"touch {tmp_path}/called")
    assert attends() == "tiled"
    assert "may be run" in (build.why_not() or "")
    assert not (tmp_path / "called").exists()


def test_without_a_home_it_imports_and_attends(tmp_path, after_torch):
    """No HOME, no such user: a process of its own."""
    code = (
        "from pathlib import Path\n"
        "def nobody(): raise RuntimeError('no home')\n"
        "Path.home = nobody\n"
        "import torch, foveal\n"
        "q = torch.randn(1, 2, 1000, 8)\n"
        "foveal.attend(q, q, q, foveal.patterns.SlidingWindow(8))\n"
        "print('done')\n"
    )
    kept = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH")
    env = {name: os.environ[name] for name in kept if name in os.environ}
    env |= {"TMPDIR": str(tmp_path), "CXX": "no-such-compiler"}
    assert after_torch(code, env) == "done\n"


# -- classes of processors ----------------------------------------------------------------------

FLAGS_OF = {
    "avx512+bf16": processor._AVX2_NEEDS | processor._AVX512_NEEDS | {"avx512_bf16"},
    "avx512": processor._AVX2_NEEDS | processor._AVX512_NEEDS,
    "avx2": processor._AVX2_NEEDS,
    "generic": {"sse2"},
}


@pytest.fixture
def pretend(monkeypatch):
    """Make the processor another one."""

    def change(flags: set[str], capability: str, machine: str = "x86_64") -> None:
        monkeypatch.setattr(processor, "cpu_flags", lambda: flags)
        monkeypatch.setattr("platform.machine", lambda: machine)
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
        monkeypatch.setattr(
            torch.cpu, "_is_avx512_bf16_supported", lambda: "avx512_bf16" in flags, raising=False
        )
        clear()

    def clear() -> None:
        for function in ("processor_class", "multiplies_bfloat16", "runnable_classes"):
            getattr(processor, function).cache_clear()

    for held in ("FOVEAL_NATIVE", "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA"):
        monkeypatch.delenv(held, raising=False)
    yield change
    monkeypatch.undo()
    clear()


@pytest.mark.parametrize(
    ("of", "capability", "told"),
    [
        ("avx512+bf16", "AVX512", "avx512+bf16"),
        ("avx512", "AVX512", "avx512"),
        ("avx512+bf16", "AVX2", "avx2"),  # ATEN_CPU_CAPABILITY holds it back
        ("avx2", "AVX2", "avx2"),
        ("avx2", "DEFAULT", "generic"),
        ("generic", "DEFAULT", "generic"),
    ],
)
def test_each_processor_gets_its_class(pretend, of, capability, told):
    """And never a class that it cannot run."""
    pretend(FLAGS_OF[of], capability)
    assert build.level() == told
    assert processor.runnable_classes() == tuple(FLAGS_OF)[list(FLAGS_OF).index(of) :]


def test_arm_has_a_class_of_its_own(pretend):
    """bfloat16 products only where the processor says that it has them."""
    pretend({"asimd"}, "DEFAULT", "aarch64")
    assert build.level() == "aarch64"
    assert not processor.multiplies_bfloat16()
    assert processor.fast_dtype("cpu", torch.bfloat16) == torch.float32
    pretend({"asimd", "bf16"}, "DEFAULT", "arm64")
    assert processor.fast_dtype("cpu", torch.bfloat16) == torch.bfloat16
    assert processor.fast_dtype("cpu", torch.float16) == torch.float32


@pytest.mark.parametrize("wanted", ["avx512+bf16", "avx512", "aarch64"])
def test_a_class_that_the_processor_lacks_is_refused(pretend, monkeypatch, wanted):
    """By name, before anything of it is loaded: an illegal instruction would end the process."""
    pretend(FLAGS_OF["avx2"], "AVX2")
    monkeypatch.setenv("FOVEAL_NATIVE", wanted)
    monkeypatch.setattr(build, "_open", pytest.fail)
    reason = native.why_not("cpu", torch.float32) or ""
    assert f"FOVEAL_NATIVE={wanted}" in reason
    assert "avx2, generic" in reason
    assert attends() == "tiled"


def test_onednn_that_is_held_back_multiplies_no_bfloat16(pretend, monkeypatch):
    """ONEDNN_MAX_CPU_ISA=AVX2 leaves bfloat16 to an emulation."""
    pretend(FLAGS_OF["avx512+bf16"], "AVX512")
    assert processor.multiplies_bfloat16()
    for limit in ("AVX2", "AVX512_CORE", "SSE41", "avx512_core_vnni"):
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
        processor.multiplies_bfloat16.cache_clear()
        assert not processor.multiplies_bfloat16()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
    processor.multiplies_bfloat16.cache_clear()
    assert processor.multiplies_bfloat16()


def test_the_library_of_a_wheel_is_taken_first(built, cache, tmp_path, monkeypatch):
    """Without a compiler or a place to write, and only where it is whole and of this source."""
    (whole,) = built.iterdir()
    shipped = tmp_path / "shipped"
    shipped.mkdir()
    monkeypatch.setattr(build, "BUILT", shipped)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert build.why_not() == "no C++ compiler found (c++, g++, clang++ or $CXX)"
    key = build._key(build.level(), flags.THREADING[0], shipped=True)
    other = build._key(build.level(), flags.THREADING[0])
    assert key != other
    shutil.copy2(whole, shipped / flags.name_for(other, whole))
    assert build.why_not() is not None
    shutil.copy2(whole, shipped / flags.name_for(key, whole))
    assert build.at_hand()
    assert attends() == "native"
    assert Path(build.library()._name).parent == shipped


OTHER_INTS = """#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <thread>
#include <vector>
#define int64_t long long
#define uint64_t unsigned long long
"""


def test_the_source_serves_systems_with_other_integers(tmp_path):
    """Where int64_t is `long long`, as on macOS, and without OpenMP, it compiles as well."""
    (tmp_path / "other.h").write_text(OTHER_INTS)
    command = [COMPILER, "-include", tmp_path / "other.h", "-std=c++17", "-fsyntax-only"]
    done = subprocess.run([*command, flags.SOURCE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
