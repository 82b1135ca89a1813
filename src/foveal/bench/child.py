"""Prints the bytes that one call of one contender adds to a fresh process.

python -m foveal.bench.child MODULES CASE CONTENDER RUN DEVICE THREADS
"""

from __future__ import annotations

import sys

import torch

from foveal.bench.case import all_cases
from foveal.bench.measure import extra_memory


def main() -> None:
    modules, name, contender, run, device, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    case = all_cases(modules.split(","))[name]
    print(extra_memory(case.make(contender, run, device), device))


if __name__ == "__main__":
    main()
