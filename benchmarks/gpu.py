"""Half an hour of a GPU, spent without thinking: tests, self-checks, benchmarks, profiles, a page.

    python benchmarks/gpu.py              all pieces, one after the other
    python benchmarks/gpu.py PIECE ...    some of them; each takes under nine minutes
    python benchmarks/gpu.py --list       what each piece does; so it does where there is no GPU

Each piece is a process with a time limit, so that one that hangs or dies costs no other. What it
printed is kept in benchmarks/results/gpu/PIECE.txt, cases in CASE-cuda.json beside it, and
docs/gpu.md is written anew after every piece, with the name of the device.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import report
import torch

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "gpu"
PAGE = ROOT / "docs" / "gpu.md"
MOST_SECONDS = 530
"""For one piece: whoever lends a GPU often stops a command after ten minutes."""


@dataclass(frozen=True)
class Piece:
    """A part that can be run by itself.

    Attributes:
        name: to call it by.
        does: a line for people.
        command: after the Python interpreter, from the root of the repository.
    """

    name: str
    does: str
    command: tuple[str, ...]


def _tests(name: str, does: str, *options: str) -> Piece:
    return Piece(name, does, ("-m", "pytest", "-q", "--durations=5", *options))


def _cases(name: str, does: str, *cases: str, rounds: int = 10) -> Piece:
    options = ("--device", "cuda", "--rounds", str(rounds), "--output", "benchmarks/results/gpu")
    return Piece(name, does, ("benchmarks/run.py", *cases, *options))


PIECES = (
    Piece("self-check", "every kernel beside plain PyTorch, by pattern and dtype",
          ("benchmarks/gpu_check.py",)),
    _tests("tests", "every test marked gpu: patterns, models, decoding, compiling", "-m", "gpu"),
    _tests("tests-ops", "the tests of ops, whose kernels the GPU now runs", "tests/ops"),
    _cases("attention", "patterns in bfloat16 beside flash attention and FlexAttention",
           "gpu-window-bf16", "gpu-blocks-bf16", "gpu-halo-bf16", "gpu-neighborhood-bf16"),
    _cases("attention-2", "the other patterns in bfloat16, and a Pyramid over 65,536 tokens",
           "gpu-axial-bf16", "gpu-longformer-bf16", "gpu-text-conv-bf16", "gpu-full-bf16",
           "gpu-pyramid"),
    _cases("attention-f32", "patterns in float32", *(
        f"gpu-{name}-f32" for name in ("window", "blocks", "halo", "neighborhood", "axial",
                                       "longformer", "text-conv", "full")), rounds=5),
    _cases("packages", "layers and training steps beside the five packages",
           "halo-layer", "sepvit-step", "dalle-step", "dalle-conv-layer", "hourglass-step",
           "htransformer-step"),
    _cases("decoding", "generated tokens of each family, and recorded steps", "token-", "graph-"),
    Piece("profile", "where a training step of each family spends its time",
          ("benchmarks/gpu_profile.py",)),
)  # fmt: skip


def run(piece: Piece, say: Callable[[str], None] = print) -> bool:
    """Run a piece, keep what it prints, and say how it ended."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    kept = RESULTS / f"{piece.name}.txt"
    started = time.perf_counter()
    paths = [str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    with kept.open("w", encoding="utf-8") as output:
        print(device_line(), "\n$ python", *piece.command, file=output, flush=True)
        process = subprocess.Popen(
            [sys.executable, *piece.command],
            cwd=ROOT,
            env=env,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            code: int | str = process.wait(MOST_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            code = f"stopped after {MOST_SECONDS} s"
        seconds = time.perf_counter() - started
        print(f"ended with {code} after {seconds:.0f} s", file=output)
    outcome = "done" if code == 0 else f"ended with {code}"
    say(f"{piece.name}: {outcome} in {seconds:.0f} s ({kept})")
    return code == 0


def device_line() -> str:
    if not torch.cuda.is_available():
        return "no CUDA device"
    properties = torch.cuda.get_device_properties(0)
    return (
        f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, "
        f"torch {torch.__version__}, CUDA {torch.version.cuda}"
    )


INTRODUCTION = """\
# On a GPU

Written by `make gpu` (`python benchmarks/gpu.py`) from `benchmarks/results/gpu`; do not edit. It
runs in pieces of under nine minutes: `python benchmarks/gpu.py --list` names them.

"""
NOTHING = "Nothing has been measured on a GPU yet: run `make gpu` on a machine that has one.\n"


def page(folder: Path = RESULTS) -> str:
    """docs/gpu.md from what has been kept."""
    said = [(piece, folder / f"{piece.name}.txt") for piece in PIECES]
    said = [(piece, path) for piece, path in said if path.is_file()]
    records = report.load(folder)
    if not said and not records:
        return INTRODUCTION + NOTHING
    parts = [INTRODUCTION.rstrip() + "\n"]
    rows = []
    for piece, path in said:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        rows.append([piece.name, piece.does, lines[0].strip(), lines[-1]])
    parts.append(report.table(["piece", "what", "device", "outcome"], rows, align=":--"))
    if records:
        runs = list(dict.fromkeys(map(report.run_line, records)))
        parts += [report.overview(records), report.summary(records)]
        parts += [report.section(record, runs) for record in records]
        numbered = (f"{number}. {text}" for number, text in enumerate(runs, 1))
        parts.append("## Runs\n\n" + "\n".join(numbered) + "\n")
    profile = folder / "profile.txt"
    if profile.is_file():
        text = profile.read_text(encoding="utf-8", errors="replace").strip()
        parts.append(f"## Profiles\n\n```text\n{text}\n```\n")
    return "\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the pieces that are named, or all; 1 if one of them ended badly."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    known = [piece.name for piece in PIECES]
    parser.add_argument("pieces", nargs="*", metavar="PIECE", help=", ".join(known))
    parser.add_argument("--list", action="store_true", help="say what each piece does")
    options = parser.parse_args(arguments)
    for name in options.pieces:
        if name not in known:
            parser.error(f"there is no piece {name!r}; there are {', '.join(known)}")
    wanted = [piece for piece in PIECES if not options.pieces or piece.name in options.pieces]
    if options.list or not torch.cuda.is_available():
        if not options.list:
            print("There is no CUDA device here. On a machine that has one, this would run:\n")
        for piece in wanted:
            print(f"{piece.name:<14} {piece.does}\n{'':<14} python {' '.join(piece.command)}")
        return 0
    print(device_line())
    good = True
    for piece in wanted:
        good &= run(piece)
        PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
