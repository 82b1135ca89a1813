"""Measure cases and keep the results: benchmarks/results/CASE-DEVICE.json.

    python benchmarks/run.py [CASE ...] [--rounds 5] [--threads 2] [--device cpu] [--only-memory]

A case is a foveal.bench.Case in a list CASES, in the package or in a file of this folder. All
contenders take turns in one process; memory is measured in a fresh process each. What is written
holds the machine, its measured limits, all versions, the date and the command.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from foveal.bench import Case, find, machine, measure, table
from foveal.bench.case import MODULES
from foveal.bench.measure import fresh_memory

HERE = Path(__file__).parent
RESULTS = HERE / "results"


def register() -> None:
    """Add every file of this folder that lists CASES."""
    for path in sorted(HERE.glob("*.py")):
        listed = re.search(r"^CASES\b", path.read_text("utf-8"), re.MULTILINE)
        if listed and path.stem not in MODULES:
            MODULES.append(path.stem)


def commit() -> str:
    """The revision that was measured, with a plus sign for changes since."""
    git = ["git", "-C", str(HERE)]
    done = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    changed = subprocess.run([*git, "status", "--porcelain", "../src"], capture_output=True)
    return done.stdout.strip() + ("+" if changed.stdout else "")


def record(case: Case, results: list, about: dict[str, Any]) -> dict[str, Any]:
    return {
        "case": case.name,
        "title": case.title,
        "peer": case.peer,
        **about,
        "results": [dataclasses.asdict(result) for result in results],
    }


def remeasure_memory(case: Case, path: Path, device: str) -> None:
    """Replace the memory in a result that is there; its times stay."""
    kept = json.loads(path.read_text("utf-8"))
    for result in kept["results"]:
        contender, run = result["contender"], result["run"]
        result["extra_bytes"] = fresh_memory(case, contender, run, device)
    kept["memory_commit"] = commit()
    path.write_text(json.dumps(kept, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", help="names, or beginnings of names; all unless given")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--no-memory", action="store_true", help="skip the processes for memory")
    parser.add_argument("--only-memory", action="store_true", help="keep the times that are there")
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    register()
    cases = [case for case in find(args.cases) if args.device in case.devices]
    args.output.mkdir(parents=True, exist_ok=True)
    if args.only_memory:
        for case in cases:
            remeasure_memory(case, args.output / f"{case.name}-{args.device}.json", args.device)
        return
    about = {
        "machine": machine.describe(args.device),
        "limits": machine.limits(args.device),
        "commit": commit(),
        "rounds": args.rounds,
        "command": " ".join(["python", "benchmarks/run.py", *sys.argv[1:]]),
    }
    print("\n".join(table.heading(about["machine"], about["limits"])), flush=True)
    for case in cases:
        memory = not args.no_memory
        results = measure(case, args.rounds, args.device, about["limits"], memory, say=print)
        path = args.output / f"{case.name}-{args.device}.json"
        path.write_text(json.dumps(record(case, results, about), indent=1) + "\n")
        print("\n".join(table.lines(case, results)), flush=True)


if __name__ == "__main__":
    main()
