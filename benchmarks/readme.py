"""What the README says was measured: foveal beside its peers; and what its commands reach.

    pip install --no-deps -r peers.txt
    python benchmarks/readme.py          # the table, in about three minutes on two cores
    python benchmarks/readme.py --run    # trains, scores and writes as the README's commands do

What is printed stands in the README. --keep writes it there, and the measurements to
benchmarks/results/readme; --from-results prints what was kept. --run hands on what else is given
to foveal train.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import re
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from report import processor, table
from run import commit, register

from foveal.bench import find, machine, measure
from foveal.bench.table import duration

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
RESULTS = Path(__file__).parent / "results" / "readme"
RECIPE = "bytes-hourglass"
NARROW = "\u00a0"
"""A space that no line ends at."""
LONG = 8.0
"""Seconds of a round from which on there is one less, so that all take less than four minutes."""


class Row(NamedTuple):
    """A run of a registered case: ours beside the last of its contenders."""

    what: str
    case: str
    run: str
    ours: str
    beside: str  # a package, whose version is added, or words


ROWS = (
    Row("window of 256, 8,192 tokens", "window-8192", "training", "attend", "dense SDPA"),
    Row("the same", "flex-window", "forward", "attend", "compiled FlexAttention"),
    Row("13 x 13 of 64 x 64 pixels", "natten-training", "training", "na2d", "masked SDPA"),
    Row("HaloNet's layer", "halo-layer", "training", "attend", "halonet-pytorch"),
    Row("DALL-E's convolution layer", "dalle-conv-layer", "training", "foveal", "dalle-pytorch"),
    Row("SepViT", "sepvit-step", "training", "foveal", "vit-pytorch"),
    Row("Hourglass", "hourglass-step", "training", "foveal", "hourglass-transformer-pytorch"),
    Row("H-Transformer-1D", "htransformer-step", "training", "foveal", "h-transformer-1d"),
)


# -- the table ------------------------------------------------------------------------------------


def measured(row: Row, rounds: int) -> dict[str, Any]:
    """The least of rounds in which both take turns, of one round less where they take long.

    Of so few rounds a median would tell what else the machine did meanwhile.
    """
    (case,) = (one for one in find([row.case]) if one.name == row.case)
    case = dataclasses.replace(case, contenders=(row.ours, case.peer), runs=(row.run,))
    rounds = max(1, rounds - (case.seconds >= LONG))
    results = measure(case, rounds, memory=False, say=say)
    seconds = {one.contender: one.best for one in results}
    found: dict[str, Any] = {"case": row.case, "rounds": {r.contender: r.rounds for r in results}}
    found |= {"ours": seconds[row.ours], "peer": seconds.get(case.peer)}
    say(f"  {found['ours']:.4g} s, beside {found['peer'] or math.nan:.4g} s")
    return found


def say(text: str) -> None:
    """How far it is; the result alone goes to the standard output."""
    print(text, file=sys.stderr, flush=True)


def where(about: dict[str, Any]) -> str:
    return (
        f"{processor(about)}, {about['threads']} threads, torch {about['torch']}, {about['date']}"
    )


def comparison(kept: dict[str, Any]) -> str:
    """The table, and below it where and how it was measured."""
    versions, cells = kept["machine"]["packages"], []
    for row, found in zip(ROWS, kept["rows"], strict=True):
        if found["peer"] is None:  # it is not installed
            continue
        beside = f"{row.beside} {versions.get(row.beside, '')}".strip()
        what = row.what if row.run == "training" else f"{row.what}, forward alone"
        speed = f"{found['peer'] / found['ours']:.3g}"
        times = (duration(found[name]).replace(" ", NARROW) for name in ("peer", "ours"))
        cells.append([what, speed, beside, *times])
    header = ["forward and backward", "times as fast", "as", "which takes", "foveal takes"]
    lines = table(header, cells).replace("| --: | --: |", "| --: | :-- |", 1)
    rounds = f"{kept['rounds'] - 1} or {kept['rounds']} rounds"
    return f"{lines}\nfloat32; {where(kept['machine'])}; the least of {rounds} in turn."


def measure_all(rounds: int) -> dict[str, Any]:
    register()
    return {**origin(), "rounds": rounds, "rows": [measured(row, rounds) for row in ROWS]}


def origin() -> dict[str, Any]:
    """Where, of what and how it was measured."""
    command = " ".join(["python", "benchmarks/readme.py", *sys.argv[1:]])
    return {"machine": machine.describe("cpu"), "commit": commit(), "command": command}


# -- the first run --------------------------------------------------------------------------------


def first_run(folder: Path, options: list[str]) -> dict[str, Any]:
    """What `foveal train`, `evaluate` and `generate` of the README's recipe reach."""
    run = folder / "run"
    command("train", RECIPE, "--output", str(run), *options)
    config, result = (
        json.loads((run / f"{name}.json").read_text("utf-8")) for name in ("config", "result")
    )
    start = time.perf_counter()
    score = json.loads(command("evaluate", str(run), "--json"))
    seconds = time.perf_counter() - start
    said = command("generate", str(run), "--prompt", "def ", "--seed", "1", "--json")
    written = json.loads(said)
    return {
        **origin(),
        "minutes": (config["training"]["time_budget"] or result["seconds"]) / 60,
        "steps": result["steps"],
        **{name: score[name] for name in ("bits_per_byte", "gzip", "xz", "bytes")},
        "scoring_seconds": score["seconds"],
        "evaluation_seconds": seconds,
        "bytes_per_second": written["tokens"] / written["seconds"],
    }


def reached(found: dict[str, Any]) -> str:
    """... in words."""
    narrow = "avx512" not in found["machine"]["vectors"]
    untold = " No machine with AVX-512 has measured this yet." if narrow else ""
    text = (
        f"In its {found['minutes']:.2g} minutes it took {found['steps']:,} steps and reached "
        f"{found['bits_per_byte']:.2f} bits per held-out byte of the library of Python "
        f"{found['machine']['python']}, where `gzip -9` needs {found['gzip']:.2f} and `xz -9e` "
        f"{found['xz']:.2f}. To score {found['bytes']:,} bytes took "
        f"{found['scoring_seconds']:.0f} s, of the {found['evaluation_seconds']:.0f} s of "
        f"`foveal evaluate`; {found['bytes_per_second']:,.0f} bytes a second were written "
        f"({where(found['machine'])}).{untold}"
    )
    return textwrap.fill(text, 105, break_on_hyphens=False)


def command(*words: str) -> str:
    """The output of a command of ours, in a process of its own."""
    say(" ".join(["foveal", *words]))
    program = [sys.executable, "-m", "foveal.cli", *words]
    return subprocess.run(program, stdout=subprocess.PIPE, text=True, check=True).stdout


# -- in the README --------------------------------------------------------------------------------


WORDS = {"table": comparison, "run": reached}
"""By mark: what the README says of the results that are kept under that name."""


def marked(text: str, name: str, body: str | None = None) -> str:
    """What stands between the marks of that name; with body the text, with that between them."""
    begin, end = (rf"<!-- --8<-- \[{one}:{name}\] -->" for one in ("start", "end"))
    found = re.search(rf"({begin}\n)(.*?)({end})", text, re.DOTALL)  # docs/index.md has it, too
    if found is None:
        raise ValueError(f"the README has no marks for the {name}.")
    if body is None:
        return found[2].rstrip("\n")
    return f"{text[: found.end(1)]}{body}\n{text[found.start(3) :]}"


def kept(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text("utf-8"))
    return found


def keep(name: str, found: dict[str, Any]) -> None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    text = marked(README.read_text("utf-8"), name, WORDS[name](found))
    README.write_text(text, "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", action="store_true", help="the first run instead of the table")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--keep", action="store_true", help="write it down, and into the README")
    parser.add_argument("--from-results", action="store_true", help="measure nothing")
    args, options = parser.parse_known_args()
    if options and not args.run:
        parser.error(f"only --run hands on options to foveal train, got {options[0]!r}.")
    torch.set_num_threads(args.threads)
    name = "run" if args.run else "table"
    if args.from_results:
        found = kept(name)
    elif args.run:
        with tempfile.TemporaryDirectory() as folder:
            found = first_run(Path(folder), options)
    else:
        found = measure_all(args.rounds)
    if args.keep:
        keep(name, found)
    print(WORDS[name](found))


if __name__ == "__main__":
    main()
